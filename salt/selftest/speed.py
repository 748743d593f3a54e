"""Measurements: matmul and copy rates, blocks per second, and peaks of memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..acceleration.attention_backend import set_attention
from ..acceleration.free_memory import bytes_text, free_bytes
from ..conditioning import Conditioning
from ..memory import MemoryPolicy
from ..models.causal_model import CausalModel
from ..models.transformer_salt import SaltTransformer3DModel
from ..noise import SeededNoise
from ..pipeline.run import InFloat32
from ..planning.models import planned_model
from ..planning.peaks import memory_plan
from ..planning.settings import PlanSettings
from ..rollout import Block, RolloutSettings, rollout
from ..schedule import Schedule
from .machine import PROMPT, WINDOWED, Machine
from .outcome import NotRun, Outcome
from .timing import ceilings, synchronize

RATE_SECONDS = {"cuda": 1.0, "cpu": 0.1}
POLICY_1_3B = MemoryPolicy("sink", 12, 3)
LATENTS_480P = (60, 104)


@dataclass(frozen=True)
class StudentSize:
    """Dimensions of a Wan transformer; Wan 2.1 1.3B's by default."""

    heads: int = 12
    head_dim: int = 128
    ffn: int = 8960
    layers: int = 30


WAN_1_3B = StudentSize()
NEEDED = int(7.5e9)  # bytes: weights 2.8 GB, memory 3.5 GB, one forward
BLOCK, FULL_AFTER, MEASURED = 3, 4, 2  # latent frames of a block; blocks until the window is full, and measured ones
MOST_SECONDS = 35.0


def rates(machine: Machine) -> Outcome:
    """Measured ceilings, in bfloat16 on a GPU and float32 on a CPU."""
    dtype = torch.bfloat16 if machine.device.type == "cuda" else torch.float32
    found = ceilings(machine.device, dtype, RATE_SECONDS[machine.device.type])
    parts = [f"matmul {found['flops'] / 1e12:.3g} TFLOP/s"]
    parts += [f"fp8 {found['fp8_flops'] / 1e12:.3g} TFLOP/s"] if "fp8_flops" in found else []
    parts += [f"copy {found['bytes'] / 1e9:.3g} GB/s"]
    parts += [f"to the host {found['to_host'] / 1e9:.3g} GB/s"] if "to_host" in found else []
    return Outcome("measured", ", ".join(parts), found)


def tiny_blocks(machine: Machine) -> Outcome:
    """salt-tiny with frames decoded, in playing speeds."""
    start, frames = time.perf_counter(), 0
    for chunk in machine.pipe.stream(
        PROMPT,
        num_frames=33 if machine.device.type == "cpu" else 117,
        num_inference_steps=2,
        memory_policy=WINDOWED,
        seed=0,
        fuse=True,
    ):
        frames += chunk.frames.shape[1]
    rate = frames / (time.perf_counter() - start)
    attention = machine.pipe.attention.name
    return Outcome("measured", f"{rate:.3g} frames/s at 64x64, 2 NFE, attention {attention}", {"fps": rate})


def random_student(device: torch.device, size: StudentSize) -> SaltTransformer3DModel:
    """A student of this size with random weights in bfloat16, made on the device."""
    with torch.device("meta"):
        student = SaltTransformer3DModel(
            num_attention_heads=size.heads, attention_head_dim=size.head_dim, ffn_dim=size.ffn, num_layers=size.layers
        ).bfloat16()
    student = student.to_empty(device=device).eval()
    with torch.no_grad():
        for weight in student.parameters():
            weight.normal_(0.0, 0.02)
    return student


@torch.no_grad()
def wan_blocks(machine: Machine, size: StudentSize = WAN_1_3B, latents: tuple[int, int] = LATENTS_480P) -> Outcome:
    """Blocks per second of a random Wan 2.1 1.3B at 832x480 with 4 NFE and the context pass, and its peak of memory.

    size, latents: another model and size, for tests.
    """
    device = machine.device
    if device.type == "cuda" and (free := free_bytes(device)) < NEEDED:
        raise NotRun(f"it needs {bytes_text(NEEDED)}, {bytes_text(free)} are free on {device}")
    student = random_student(device, size)
    attention = set_attention(student, "auto", device, torch.bfloat16, size.head_dim, approximate=False).name
    text = Conditioning(torch.zeros(1, 512, student.config.text_dim, device=device, dtype=torch.bfloat16))
    memory = student.new_memory(POLICY_1_3B, 1, *latents)
    noise = SeededNoise(0, 1, 16, *latents, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    blocks = rollout(
        InFloat32(CausalModel(student), torch.bfloat16), text, memory, noise,
        BLOCK * (FULL_AFTER + MEASURED + 1), RolloutSettings(Schedule.of(4), fuse=True),
    )  # fmt: skip
    seconds = _block_seconds(blocks, device)
    measured = min(seconds[FULL_AFTER:] or seconds[-1:])
    full = "" if len(seconds) > FULL_AFTER else f", window not full after {len(seconds)} blocks"
    figures = {"blocks_per_second": 1 / measured, "fps": 12 / measured}
    detail = f"{1 / measured:.3g} blocks/s ({12 / measured:.3g} frames/s), attention {attention}{full}"
    if device.type == "cuda":
        figures["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        figures["planned_peak_gb"] = planned_peak() / 1e9
        detail += f", peak {figures['peak_gb']:.3g} GB (planned {figures['planned_peak_gb']:.3g})"
    return Outcome("measured", detail, figures)


def planned_peak() -> int:
    """Bytes of this run by `salt plan`: denoising alone, without the VAE that a plan always has."""
    settings = PlanSettings(policy=POLICY_1_3B, text="none", decoder="none", fuse=True)
    denoising = memory_plan(planned_model("1.3B"), settings).phase("denoising")
    return denoising.bytes - denoising.parts["VAE"]


def _block_seconds(blocks: Iterator[Block], device: torch.device) -> list[float]:
    """Seconds of each block; ends early on a slow device."""
    seconds: list[float] = []
    latents: list[Tensor] = []
    began = start = time.perf_counter()
    for block in blocks:
        latents = [block.latents]
        synchronize(device)
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
        if now - began > MOST_SECONDS:
            break
    if not all(x.isfinite().all() for x in latents):
        raise ValueError("a random student's latents are not finite (NaN or infinity)")
    return seconds
