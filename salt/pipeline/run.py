"""Carries out a prepared run: blocks of latents from the rollout, and chunks of decoded frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..acceleration.cuda_graphs import CUDAGraphTransformer
from ..acceleration.finite_check import FiniteCheck, block_name, decoder_not_finite
from ..conditioning import Conditioning
from ..memory import KVMemory
from ..memory.clean_latents import Reencode
from ..memory.rewound import DECODER_WARM_UP
from ..model_input import FlowModel, ModelInput
from ..models.async_decoder import AsyncDecoder, PendingFrames, decode_ahead, decode_in_turn
from ..models.causal_model import BidirectionalModel, CausalModel
from ..models.fingerprint import fingerprint
from ..models.head_encoder import HeadEncoder, LatestPixels
from ..models.streaming_vae import FrameDecoder, encode_pixels
from ..rollout import Block, OnStepEnd, rollout
from ..sampling import sample_bidirectional
from .components import PipelineComponents
from .lora import AdapterState, adapter_state
from .prepare import PreparedRun
from .progress import OnStep


@dataclass(frozen=True)
class Chunk:
    """A finished block, decoded.

    pixels: [B, 3, T, H, W] in [-1, 1], float32, on the decoder's device; frames: the same as uint8 [B, T, H, W, 3] on
    the CPU. latents: [B, C, F, H, W], what they were decoded from; the first chunk includes those of an image or video
    start. first_frame: index of the first of `pixels` in this clip. seconds: wall time of the block, decoding included.
    memory: as the rollout goes on writing it; complete once the stream is exhausted.
    """

    block: Block
    pixels: Tensor
    frames: Tensor
    latents: Tensor
    first_frame: int
    seconds: float
    memory: KVMemory | None = None


@torch.no_grad()
def run_chunks(
    components: PipelineComponents,
    prepared: PreparedRun,
    decoder: FrameDecoder,
    on_step: OnStep | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Iterator[Chunk]:
    """Yield every block as soon as its frames are decoded. Raises NotFiniteError in place of NaN and infinity."""
    decoding, first_frame, checks = AsyncDecoder(decoder, components.device), 0, FiniteCheck()
    if prepared.history_latents is not None and not prepared.decodes_history:
        decoding.begin(prepared.history_latents[:, :, -DECODER_WARM_UP:])
    start = [] if prepared.initial_latents is None else [prepared.initial_latents]
    latest = LatestPixels(decoding.begin)

    def latents_of(block: Block) -> Tensor:
        return block.latents if block.index else torch.cat([*start, block.latents], dim=2)

    def begin(block: Block) -> PendingFrames:
        checks.add(block)
        pending = decoding.begin(latents_of(block))
        return latest.keep(block.latents, pending) if prepared.reencodes else pending

    # Weights that accelerate offloads would be fetched and sent away by turns.
    ordered = decode_ahead if decoding.overlaps and not components.offloaded else decode_in_turn
    began = time.perf_counter()
    reencode = _head_encoder(components, latest)
    blocks = run_blocks(components, prepared, on_step, on_step_end, reencode)
    for block, pending in ordered(blocks, begin):
        ready = pending.wait()
        checks.check(block)
        if not ready.finite.wait():
            raise decoder_not_finite(block_name(block))
        seconds = time.perf_counter() - began
        latents = latents_of(block)
        yield Chunk(block, ready.pixels, ready.frames, latents, first_frame, seconds, prepared.memory)
        first_frame += ready.pixels.shape[2]
        began = time.perf_counter()


def run_latents(
    components: PipelineComponents,
    prepared: PreparedRun,
    new_decoder: Callable[[], FrameDecoder],
    on_step: OnStep | None = None,
    on_step_end: OnStepEnd | None = None,
) -> list[Tensor]:
    """Latents of all blocks, those of a start first. Raises NotFiniteError in place of NaN and infinity.

    new_decoder: for a memory that needs decoded frames.
    """
    checks, parts = FiniteCheck(), [] if prepared.initial_latents is None else [prepared.initial_latents]
    reencode = None
    if prepared.reencodes:
        reencode = _head_encoder(components, _decoding(prepared, new_decoder()))
    for block in run_blocks(components, prepared, on_step, on_step_end, reencode):
        checks.add(block)
        checks.check_known()
        parts.append(block.latents)
    checks.check()
    return parts


def _decoding(prepared: PreparedRun, decoder: FrameDecoder) -> Callable[[Tensor], Tensor]:
    """What decodes the blocks of a clip whose frames nobody else wants."""
    if prepared.history_latents is not None and not prepared.decodes_history:
        decoder.decode(prepared.history_latents[:, :, -DECODER_WARM_UP:])
    start = [] if prepared.initial_latents is None else [prepared.initial_latents]

    def pixels_of(latents: Tensor) -> Tensor:
        before, start[:] = [*start], []
        return decoder.decode(torch.cat([*before, latents], dim=2))

    return pixels_of


def _head_encoder(components: PipelineComponents, pixels_of: Callable[[Tensor], Tensor]) -> HeadEncoder:
    return HeadEncoder(pixels_of, partial(encode_pixels, components.vae), components.temporal_scale)


@torch.no_grad()
def run_blocks(
    components: PipelineComponents,
    prepared: PreparedRun,
    on_step: OnStep | None = None,
    on_step_end: OnStepEnd | None = None,
    reencode: Reencode | None = None,
) -> Iterator[Block]:
    """Yield the blocks of latents; a bidirectional model's whole clip is one block."""
    frames = prepared.length.frames
    if prepared.memory is None:
        began = time.perf_counter()
        latents = sample_bidirectional(
            InFloat32(BidirectionalModel(components.transformer), components.transformer.dtype),
            prepared.conditioning.at(0).conditioning,
            prepared.noise,
            frames,
            prepared.settings,
            negative=prepared.negative,
            on_step=on_step,
            on_step_end=on_step_end,
        )
        seconds = time.perf_counter() - began
        yield Block(0, 1, 0, frames, latents, prepared.settings.schedule.nfe, seconds, prepared.noise.seeds)
        return
    if prepared.negative is not None and prepared.negative_memory is None:
        prepared.negative_memory = prepared.memory.empty_like()
        if components.acceleration.compiled:
            components.buffer_pool.lend_buffers(prepared.negative_memory)
    yield from rollout(
        InFloat32(ModelWithAdapters(components, prepared), components.transformer.dtype),
        prepared.conditioning,
        prepared.memory,
        prepared.noise,
        frames,
        prepared.settings,
        negative=prepared.negative,
        negative_memory=prepared.negative_memory,
        initial_latents=prepared.initial_latents,
        history_latents=prepared.history_latents,
        video=prepared.video,
        first_frame=prepared.first_frame,
        on_step=on_step,
        on_step_end=on_step_end,
        reencode=reencode,
    )


class ModelWithAdapters:
    """The student of a run. LoRA adapters may be changed (`set_adapters`, `disable_lora`) between two calls of it.

    What was kept for the adapters before is dropped then: cross-attention of the prompts, a CUDA graph. The memories
    belong to the adapters that they are written with last.
    """

    def __init__(self, components: PipelineComponents, prepared: PreparedRun) -> None:
        self.components, self.prepared = components, prepared
        self.student = components.graphed or components.transformer
        self.model = CausalModel(self.student, components.flow_map)
        self.adapters = self._adapters()

    def _adapters(self) -> AdapterState:
        transformer = self.components.transformer
        return adapter_state(transformer) if hasattr(transformer, "peft_config") else ()

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        if (adapters := self._adapters()) != self.adapters:
            self.adapters = adapters
            self._renew()
        return self.model(inputs)

    def _renew(self) -> None:
        if self.components.graphed is not None:
            self.student = CUDAGraphTransformer(self.components.transformer)
        self.model = CausalModel(self.student, self.components.flow_map)
        for memory in (self.prepared.memory, self.prepared.negative_memory):
            if memory is not None:
                memory.fingerprint = fingerprint(self.components.transformer)


class InFloat32:
    """A model in its own dtype for latents and timesteps in float32: a timestep of 937.5 has no bfloat16."""

    def __init__(self, model: FlowModel[Conditioning], dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        return self.model(replace(inputs, x=inputs.x.to(self.dtype))).float()
