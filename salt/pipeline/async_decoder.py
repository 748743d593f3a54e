"""Decoding beside denoising: blocks go in as they are made, pixels come out when they are ready.

On a GPU decoding has a stream of its own, and frames reach the host through pinned memory on that stream: the host
waits for a block's frames while the next block is already being denoised. Elsewhere everything happens in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cuda_streams import side_stream
from ..io.video import to_uint8
from ..models.streaming_vae import FrameDecoder
from ..rollout import Block


@dataclass
class PendingFrames:
    """A block being decoded. pixels: [B, 3, T, H, W] float32 in [-1, 1] on the decoder's device; frames: the same as
    uint8 [B, T, H, W, 3] on the CPU. Neither may be looked at before `wait`."""

    pixels: Tensor
    frames: Tensor
    done: torch.cuda.Event | None = None

    def wait(self) -> PendingFrames:
        if self.done is not None:
            self.done.synchronize()
            if self.pixels.is_cuda:
                self.pixels.record_stream(torch.cuda.current_stream(self.pixels.device))
        return self


class AsyncDecoder:
    """A decoder and the stream it works on. aside: whether there is one; then blocks are worth being made ahead."""

    def __init__(self, decoder: FrameDecoder, device: torch.device) -> None:
        self.decoder = decoder
        self.stream: torch.cuda.Stream | None = side_stream(device, "decode") if device.type == "cuda" else None

    @property
    def aside(self) -> bool:
        return self.stream is not None

    def begin(self, latents_BCFHW: Tensor) -> PendingFrames:
        """Decode the next latents of the clip; they may still be under way on the current stream."""
        here: Any = nullcontext()
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
            if latents_BCFHW.is_cuda:
                latents_BCFHW.record_stream(self.stream)
            here = torch.cuda.stream(self.stream)
        with here:
            pixels = self.decoder.decode(latents_BCFHW)
            pictures = to_uint8(pixels.transpose(0, 1).flatten(1, 2)).unflatten(0, (pixels.shape[0], -1))
            if self.stream is None:
                return PendingFrames(pixels, pictures.cpu())
            frames = torch.empty(pictures.shape, dtype=torch.uint8, pin_memory=True)
            frames.copy_(pictures.contiguous(), non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.stream)
        return PendingFrames(pixels, frames, done)


def made_ahead(
    blocks: Iterator[Block], begin: Callable[[Block], PendingFrames]
) -> Iterator[tuple[Block, PendingFrames]]:
    """Every block with its decoding, the next block set going before it is handed out.

    What ends the making of the next block is raised after this one has been handed out: a finished block is not lost.
    """
    block = next(blocks, None)
    while block is not None:
        projection, following, ended = begin(block), None, None
        try:
            following = next(blocks, None)
        except BaseException as error:
            ended = error
        yield block, projection
        if ended is not None:
            raise ended
        block = following


def in_turn(blocks: Iterator[Block], begin: Callable[[Block], PendingFrames]) -> Iterator[tuple[Block, PendingFrames]]:
    """Every block with its decoding, the next one made when it is asked for."""
    for block in blocks:
        yield block, begin(block)
