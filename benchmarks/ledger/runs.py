"""Whole runs of the pipeline on the fake device: costs and waits of a block, and the peak of every phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor, nn

from benchmarks.ledger.cases import BLOCK, DEEP, LATENT, SHALLOW, SIZES, student
from benchmarks.ledger.counting import DENOISE, Costs, Ledger, Phase
from benchmarks.ledger.fake_device import DEVICE, clear_caches
from benchmarks.ledger.text import umt5
from benchmarks.training import RandomText
from salt.acceleration.kernels.choice import ALL_KERNELS, KernelChoice, use_kernels
from salt.acceleration.kernels.chosen import NO_KERNELS
from salt.acceleration.presets import PREFERENCES, Preference, store_weights
from salt.checkpoints.longlive2 import LONGLIVE2
from salt.memory import MemoryPolicy
from salt.models.anyflow import AnyFlowTransformer3DModel
from salt.models.streaming_vae import FrameDecoder, Tiling, WanStreamDecoder
from salt.models.taehv import TinyDecoder, TinyStreamDecoder
from salt.models.text_encoder import TextEncoder
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.pipeline import SaltPipeline
from salt.pipeline.anyflow import anyflow_spec
from salt.spec import WAN22_CHANNELS, StudentSpec

WAN22_VAE: dict[str, Any] = {  # by diffusers' names
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12, "is_residual": True,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
TEXT, DECODE, START = "text", "decode", "start"
NFE = 4
BLOCKS = 5  # of a run: the window is full in the last one


@dataclass(frozen=True)
class RunCase:
    """A run of the pipeline. policy: None for the preset's own. decoder: wan, taehv, or none for latents alone.
    vae_dtype: of Wan's VAE. text: whether the prompt is encoded by a UMT5 of true size. image: whether it starts from
    one. blocks: at least 2, after the image. options: of the call."""

    preset: Preference = "exact"
    size: str = "1.3B"
    policy: str | None = "sink:3,window:12"
    decoder: str = "wan"
    vae_dtype: torch.dtype = torch.bfloat16
    text: bool = False
    image: bool = False
    blocks: int = BLOCKS
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunCosts:
    """block: costs of the last block's denoising and context pass at full depth; decode: of its decoding. whole: of the
    whole run, by phase. peaks: bytes by phase at full depth. reserved: what the allocator holds, streams apart. waits:
    by phase, places where the host waits in the last block. all_waits: the same of the whole run."""

    block: Costs
    decode: Costs
    whole: dict[str, Costs]
    peaks: dict[str, float]
    reserved: float
    waits: dict[str, Counter[str]]
    all_waits: dict[str, Counter[str]]

    @property
    def peak(self) -> float:
        return max(self.peaks.values())

    @property
    def total(self) -> Costs:
        """Of the whole run, decoding included."""
        return sum(self.whole.values(), Costs())


def run_costs(case: RunCase) -> RunCosts:
    """Costs and peaks at full depth, from the two depths that are run. Call it within `fake_cuda()`.

    Decoding is run at one depth: what is live beside it grows with depth as it does beside denoising.
    """
    reencodes = case.policy is not None and MemoryPolicy.parse(case.policy).reencodes
    undecoded = case if reencodes else replace(case, decoder="none")
    low, high = run_at(case, SHALLOW), run_at(undecoded, DEEP)
    layers = SIZES[case.size]["num_layers"]
    bare = low if undecoded == case else run_at(undecoded, SHALLOW)
    layers -= SHALLOW

    def deeper(name: str) -> float:
        """Bytes that the layers above SHALLOW add to what is live in a phase."""
        like = name if name in high.peaks and name != DECODE else DENOISE
        return (high.peaks[like] - bare.peaks[like]) / (DEEP - SHALLOW) * layers

    def more(name: str) -> Costs:
        """What those layers add to a phase of the whole run."""
        ours, theirs = (c.whole.get(name, Costs()) for c in (bare, high))
        return (theirs - ours) * (layers / (DEEP - SHALLOW))

    return replace(
        low,
        block=low.block + (high.block - bare.block) * (layers / (DEEP - SHALLOW)),
        whole={name: costs + more(name) for name, costs in low.whole.items()},
        peaks={name: peak + deeper(name) for name, peak in low.peaks.items()},
        reserved=low.reserved + deeper(DENOISE),
    )


class LedgerPipeline(SaltPipeline):
    """With the kernels of a card that has them all, which the fake device is not known to be."""

    @property
    def kernels(self) -> KernelChoice:
        chosen = ALL_KERNELS if self.acceleration.kernels else NO_KERNELS
        use_kernels(self.transformer, chosen)
        return KernelChoice(chosen, "the fake device has them")


class NoDecoder:
    """In place of a decoder: frames of one pixel."""

    spatial_scale, temporal_scale, nbytes = 8, 4, 0

    def reset(self) -> None: ...

    def fork(self) -> FrameDecoder:
        return self

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        return latents_BCFHW.new_zeros(latents_BCFHW.shape[0], 3, 4 * latents_BCFHW.shape[2], 1, 1)


class PhasedDecoder:
    """A decoder whose calls are a phase of their own."""

    def __init__(self, decoder: FrameDecoder, ledger: Ledger) -> None:
        self.decoder, self.ledger = decoder, ledger
        self.spatial_scale, self.temporal_scale = decoder.spatial_scale, decoder.temporal_scale

    @property
    def nbytes(self) -> int:
        return self.decoder.nbytes

    def reset(self) -> None:
        self.decoder.reset()

    def fork(self) -> FrameDecoder:
        return PhasedDecoder(self.decoder.fork(), self.ledger)

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        with self.ledger.during(DECODE):
            return self.decoder.decode(latents_BCFHW)


class PhasedText:
    """A text encoder whose calls are a phase of their own."""

    def __init__(self, encoder: TextEncoder, ledger: Ledger) -> None:
        self.encoder, self.ledger, self.dim, self.max_length = encoder, ledger, encoder.dim, encoder.max_length

    def encode(self, prompts: list[str]) -> Tensor:
        with self.ledger.during(TEXT):
            return self.encoder.encode(prompts)


def pipeline(case: RunCase, layers: int, ledger: Ledger) -> SaltPipeline:
    """A pipeline of true width on the device."""
    is_wan22 = SIZES[case.size]["in_channels"] == WAN22_CHANNELS
    with DEVICE:
        vae = AutoencoderKLWan(**(WAN22_VAE if is_wan22 else {}))
    vae = nn.Module.to(vae, case.vae_dtype).eval()
    is_far = case.policy is not None and MemoryPolicy.parse(case.policy).kind == "far"
    kind = AnyFlowTransformer3DModel if is_far else SaltTransformer3DModel
    transformer = student(SIZES[case.size], layers, kind=kind)
    spec = anyflow_spec(transformer) if is_far else LONGLIVE2 if is_wan22 else StudentSpec()
    pipe = LedgerPipeline(transformer, vae, student=spec)
    pipe.set_progress_bar_config(disable=True)
    preset = PREFERENCES[case.preset]
    # Compiled and float8 layers are not run here: the first is what eager fuses into, the second needs torchao.
    pipe.acceleration = replace(preset, compiled=False, fp8=False)
    store_weights(transformer, preset.weights, DEVICE)
    encoder = umt5("cpu" if preset.offload_text_encoder else DEVICE) if case.text else RandomText(512)
    pipe.set_prompt_encoder(PhasedText(encoder, ledger))
    if case.decoder != "wan" and not case.image:
        nn.Module.to(pipe.vae, "cpu")
    make = decoders(pipe, case.decoder)
    pipe.set_decoder(lambda: PhasedDecoder(make(), ledger))
    return pipe


def decoders(pipe: SaltPipeline, name: str) -> Callable[[], FrameDecoder]:
    """What makes the decoder of a clip; `wan`: as the pipeline would."""
    if name == "none":
        return NoDecoder
    if name == "wan":
        tiling = Tiling(caches="cpu") if pipe.acceleration.tiles else None
        return lambda: WanStreamDecoder(pipe.vae, tiling)
    with DEVICE:
        tiny = TinyDecoder()
    tiny = tiny.half().eval()
    return lambda: TinyStreamDecoder(tiny)


@torch.no_grad()
def run_at(case: RunCase, layers: int = SHALLOW) -> RunCosts:
    """Costs and peaks of a run with this many layers. Call it within `fake_cuda()`."""
    clear_caches()
    with Ledger() as ledger:
        pipe = pipeline(case, layers, ledger)
        block, first = pipe.spec.frames_per_block, pipe.spec.first_block
        frames = 4 * ((first or block) + block * (case.blocks - 1) + case.image) - 3
        ledger.start_again()  # without the float32 weights that the models are made with
        options: dict[str, Any] = {"num_frames": frames, "num_inference_steps": NFE, "seed": 0, **case.options}
        if case.policy:
            options["memory_policy"] = case.policy
        if case.image:
            options["image"] = Image.fromarray(np.zeros((480, 832, 3), np.uint8))
        parts: list[dict[str, Phase]] = []  # of the run, up to every chunk
        reserved = 0.0

        def part_ends() -> None:
            nonlocal reserved
            parts.append(dict(ledger.phases))
            reserved = max(reserved, ledger.reserved)
            ledger.start_again()

        with ledger.during(START):
            chunks = pipe.stream("a prompt", **options)
        for _ in chunks:
            part_ends()
        part_ends()
        names = {name for part in parts for name in part}
        block = parts[case.blocks - 2]  # since the chunk before: the last block's denoising, beside this one's decoding
        return RunCosts(
            block[DENOISE].costs,
            block[DECODE].costs,
            {name: sum((part[name].costs for part in parts if name in part), Costs()) for name in names},
            {name: max(part[name].peak for part in parts if name in part) for name in names},
            reserved,
            {name: phase.waits for name, phase in block.items()},
            {name: sum((part[name].waits for part in parts if name in part), Counter()) for name in names},
        )


@torch.no_grad()
def tiled_decode_costs(tiling: Tiling | None, frames: int = BLOCK) -> Phase:
    """Decoding of `frames` latent frames by Wan's VAE in the middle of a clip: what it asks of the device."""
    with Ledger() as ledger:
        with DEVICE:
            vae = AutoencoderKLWan()
        decoder = WanStreamDecoder(nn.Module.to(vae, torch.bfloat16).eval(), tiling)
        decoder.decode(torch.zeros(1, 16, 1, *LATENT, device=DEVICE))
        ledger.start_again()
        decoder.decode(torch.zeros(1, 16, frames, *LATENT, device=DEVICE))
        return ledger.phase
