"""Decoding beside denoising: latents of a block go in when they are final, frames come out when they are ready.

On a GPU decoding has a stream of its own, and frames reach the host through pinned memory on that stream: the host
waits for a block's frames while the next block is already being denoised. On other devices one follows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..acceleration.cuda_streams import side_stream
from ..acceleration.finite_check import FiniteFlag
from ..io.video import to_uint8
from ..memory import MemoryPolicy
from ..memory.rewound import DECODER_WARM_UP
from ..rollout import Block

if TYPE_CHECKING:
    from .streaming_vae import FrameDecoder


def most_latents_for_extension(policy: MemoryPolicy) -> int | None:
    """Latent frames at the end of a clip that its extension may use: as many as the decoder needs to go on, and as a
    recache may re-encode. None: all of them."""
    return None if policy.window is None else max(DECODER_WARM_UP, policy.window)


@dataclass
class PendingFrames:
    """A block being decoded. pixels: [B, 3, T, H, W] float32 in [-1, 1] on the decoder's device; frames: the same as
    uint8 [B, T, H, W, 3] on the CPU. finite: whether the pixels are. None of them may be read before `wait`; work on
    the device may read the pixels `on_current_stream`."""

    pixels: Tensor
    frames: Tensor
    finite: FiniteFlag
    done: torch.cuda.Event | None = None

    def wait(self) -> PendingFrames:
        if self.done is not None:
            self.done.synchronize()
            if self.pixels.is_cuda:
                self.pixels.record_stream(torch.cuda.current_stream(self.pixels.device))
        return self

    def on_current_stream(self) -> Tensor:
        """The pixels, for work on the current stream, which waits for them; the host does not."""
        if self.done is not None and self.pixels.is_cuda:
            current = torch.cuda.current_stream(self.pixels.device)
            self.done.wait(current)
            self.pixels.record_stream(current)
        return self.pixels


class AsyncDecoder:
    """A streaming decoder on a CUDA stream of its own, where the device has streams."""

    def __init__(self, decoder: FrameDecoder, device: torch.device) -> None:
        self.decoder = decoder
        self.stream: torch.cuda.Stream | None = side_stream(device, "decode") if device.type == "cuda" else None

    @property
    def overlaps(self) -> bool:
        """Whether decoding runs beside denoising; then the next block is worth being started before this one's frames
        are waited for."""
        return self.stream is not None

    def fork(self) -> FrameDecoder:
        """A decoder that goes on after the latents that were begun."""
        with torch.cuda.stream(self.stream):  # nothing, where there is no stream
            return self.decoder.fork()

    def begin(self, latents_BCFHW: Tensor) -> PendingFrames:
        """Decode the next latents of the clip; they may still be computed on the current stream."""
        on_stream: AbstractContextManager[object] = nullcontext()
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
            if latents_BCFHW.is_cuda:
                latents_BCFHW.record_stream(self.stream)
            on_stream = torch.cuda.stream(self.stream)
        with on_stream:
            pixels = self.decoder.decode(latents_BCFHW)
            images = to_uint8(pixels.transpose(0, 1).flatten(1, 2)).unflatten(0, (pixels.shape[0], -1))
            finite = FiniteFlag.of(pixels)
            if self.stream is None:
                return PendingFrames(pixels, images.cpu(), finite)
            frames = torch.empty(images.shape, dtype=torch.uint8, pin_memory=True)
            frames.copy_(images.contiguous(), non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.stream)
        return PendingFrames(pixels, frames, finite, done)


def decode_ahead(
    blocks: Iterator[Block], begin: Callable[[Block], PendingFrames]
) -> Iterator[tuple[Block, PendingFrames]]:
    """Every block with its decoding; the next block is computed before this one is yielded.

    An error in the next block is raised after this one has been yielded, so that no finished block is lost.
    """
    block = next(blocks, None)
    while block is not None:
        pending, following, failure = begin(block), None, None
        try:
            following = next(blocks, None)
        except BaseException as error:
            failure = error
        yield block, pending
        if failure is not None:
            raise failure
        block = following


def decode_in_turn(
    blocks: Iterator[Block], begin: Callable[[Block], PendingFrames]
) -> Iterator[tuple[Block, PendingFrames]]:
    """Every block with its decoding; the next block is computed when it is wanted."""
    for block in blocks:
        yield block, begin(block)
