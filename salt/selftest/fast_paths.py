"""Checks of numbers: golden rollouts, and every fast path beside its plain twin on the same device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..acceleration.attention_backend import (
    DIFFUSERS_NAMES,
    EXACT_ERROR,
    PROCESSORS,
    SAGE_ERROR,
    Backend,
    attention_error,
    card_of,
    installed_backends,
    why_not,
)
from ..acceleration.cuda_graphs import CUDAGraphTransformer
from ..memory.policy import Precision
from ..models.async_decoder import AsyncDecoder
from ..models.streaming_vae import Tiling, WanStreamDecoder
from .machine import GOLDEN_POLICIES, WINDOWED, Machine, golden, relative_error
from .outcome import NotRun, Outcome, within

# Relative errors of salt-tiny's latents. On a CPU: float32 1e-6 between machines, bfloat16 1.9e-2 (torch 2.6: 8.2e-2),
# int8 5.5e-3, fp8 2.6e-2, int4 6.2e-2, tiles 1.4e-2; one key of attention left out: 0.45.
FLOAT32, BFLOAT16, SAME = 5e-4, 0.15, 1e-4
PRECISIONS: dict[Precision, float] = {"int8": 1.5e-2, "fp8": 6e-2, "int4": 0.15}
TILES = 4e-2
LONG = 24  # latent frames: the window is full long enough for graphs to be recorded and replayed


def golden_rollouts(machine: Machine, dtype: torch.dtype) -> Outcome:
    """Rollouts of every memory policy beside the packaged ones; float32 means float32, not TF32."""
    expected = golden()
    policies = GOLDEN_POLICIES if dtype == torch.float32 else GOLDEN_POLICIES[2:4]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        errors = {p: relative_error(machine.plain(p, dtype), expected[p]) for p in policies}
    worst = max(errors, key=lambda policy: errors[policy])
    limit = FLOAT32 if dtype == torch.float32 else BFLOAT16
    return within(errors[worst], limit, f"{len(errors)} rollouts, largest error ({worst})")


def fused_context(machine: Machine) -> Outcome:
    """A block's context pass and the next one's first step in one forward, beside two."""
    made = machine.clip(machine.student(torch.float32), WINDOWED, torch.float32, fuse=True)
    return within(relative_error(made, machine.plain(WINDOWED, torch.float32)), FLOAT32)


def cuda_graphs(machine: Machine) -> Outcome:
    """Recorded forwards beside ordinary ones."""
    _need_cuda(machine)
    dtype = torch.float32
    student = machine.student(dtype)
    expected = machine.clip(student, WINDOWED, dtype, frames=LONG)
    made = machine.clip(CUDAGraphTransformer(student), WINDOWED, dtype, frames=LONG)
    return within(relative_error(made, expected), SAME)


def cpu_residence(machine: Machine) -> Outcome:
    """A memory in main memory beside one on the device; and a quantised one."""
    _need_cuda(machine)
    dtype = torch.float32
    student = machine.student(dtype)
    pairs = [(f"{WINDOWED},cpu", WINDOWED), (f"{WINDOWED},int8,cpu", f"{WINDOWED},int8")]
    errors = [relative_error(machine.clip(student, a, dtype), machine.clip(student, b, dtype)) for a, b in pairs]
    return within(max(errors), SAME)


def quantised_memory(machine: Machine, precision: Precision) -> Outcome:
    """A quantised memory beside an exact one."""
    made = machine.clip(machine.student(torch.float32), f"{WINDOWED},{precision}", torch.float32)
    return within(relative_error(made, machine.plain(WINDOWED, torch.float32)), PRECISIONS[precision])


def tiled_decode(machine: Machine) -> Outcome:
    """Decoding in tiles beside decoding whole frames."""
    latents = golden()[WINDOWED][:, :, :6].to(machine.device)
    tiles = _decoded(machine, WanStreamDecoder(machine.pipe.vae, Tiling(48, 16)), latents)
    return within(relative_error(tiles, _decoded(machine, WanStreamDecoder(machine.pipe.vae), latents)), TILES)


def decoding_stream(machine: Machine) -> Outcome:
    """Decoding on a stream of its own while the main one is busy, beside decoding in turn."""
    _need_cuda(machine)
    latents = golden()[WINDOWED][:, :, :6].to(machine.device)
    expected = _decoded(machine, WanStreamDecoder(machine.pipe.vae), latents)
    decoder, busy = AsyncDecoder(WanStreamDecoder(machine.pipe.vae), machine.device), torch.randn_like(latents)
    pending = []
    with torch.no_grad():
        for block in latents.split(3, dim=2):
            pending.append(decoder.begin(block))
            busy = busy * 1.01 + block.mean()
    made = [p.wait() for p in pending]
    frames = torch.cat([p.frames for p in made], dim=1)
    plain = ((expected + 1) * 127.5).round().clamp(0, 255)
    error = (frames.permute(0, 4, 1, 2, 3).float() - plain.cpu()).abs().max().item()
    return within(max(error, relative_error(torch.cat([p.pixels for p in made], 2), expected)), 1, "levels of 255,")


def attention_backend(machine: Machine, name: Backend) -> Outcome:
    """A back end beside attention in float32 at the width of Wan's heads, and a rollout with it."""
    gpu = machine.device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    if fault := why_not(name, card_of(machine.device), installed_backends(), dtype, 128):
        raise NotRun(fault)
    lengths = (1560, 12 * 1560, 12 * 1560) if gpu else (96, 480, 480)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 4, 128, generator=generator).to(machine.device, dtype) for n in lengths)
    error = attention_error(name, q, k, v)
    student = machine.student(dtype)
    processors = [p for m in student.modules() if isinstance(p := getattr(m, "processor", None), PROCESSORS)]
    before = [p._attention_backend for p in processors]
    try:
        for processor in processors:
            processor._attention_backend = DIFFUSERS_NAMES[name]
        clip = relative_error(machine.clip(student, WINDOWED, dtype), golden()[WINDOWED])
    finally:
        for processor, backend in zip(processors, before, strict=True):
            processor._attention_backend = backend
    if clip > (limit := (2 if name == "sage" else 1) * (BFLOAT16 if gpu else FLOAT32)):
        return within(clip, limit, "a rollout's error")
    return within(error, 1e-5 if not gpu else SAGE_ERROR if name == "sage" else EXACT_ERROR)


def _need_cuda(machine: Machine) -> None:
    if machine.device.type != "cuda":
        raise NotRun(f"the device is {machine.device.type}, expected CUDA")


@torch.no_grad()
def _decoded(machine: Machine, decoder: WanStreamDecoder, latents: Tensor) -> Tensor:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.cat([decoder.decode(block) for block in latents.split(3, dim=2)], dim=2)
