"""Measured ceilings of the device: matmul and copy rates, to which the figures of the speed table are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from benchmarks.measure import timed

MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}
SECONDS_PER_RATE = 1.0


class WanConfig(Protocol):
    """The configuration of a Wan transformer, as far as its arithmetic depends on it."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int


def best_rate(call: Callable[[], object], work: float, device: torch.device) -> float:
    """`work` per second in the fastest of the calls that fit into SECONDS_PER_RATE, after a warm-up call."""
    call()
    best, spent = float("inf"), 0.0
    while spent < SECONDS_PER_RATE:
        best = min(best, timed(call, device))
        spent += best
    return work / best


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Rates of a device, per second.

    flops: of a square matmul in `dtype`; fp8_flops: in float8, if the GPU has it; bytes: read and written by a copy on
    the device; to_host: bytes copied from the device to pinned memory.
    """
    n = MATMUL_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    rates = {"flops": best_rate(lambda: a @ b, 2 * n**3, device)}
    source = torch.empty(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates["bytes"] = best_rate(lambda: target.copy_(source), 2 * source.numel(), device)
    if device.type == "cuda":
        host = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=True)
        rates["to_host"] = best_rate(lambda: host.copy_(source, non_blocking=True), source.numel(), device)
        if torch.cuda.get_device_capability(device) >= (8, 9):
            x, y = (m.to(torch.float8_e4m3fn) for m in (a, b.T.contiguous().T))
            one = torch.ones((), device=device)
            options = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
            rates["fp8_flops"] = best_rate(lambda: torch._scaled_mm(x, y, **options), 2 * n**3, device)
    return rates


def forward_flops(config: WanConfig, queries: int, keys: int, text: int) -> dict[str, float]:
    """Multiplications and additions of one forward of a Wan transformer, for linear layers and for attention.

    queries: tokens of the forward; keys: tokens that self-attention reads; text: prompt tokens, whose keys and values
    are cached. Embeddings and head, under one percent, are left out.
    """
    dim = config.num_attention_heads * config.attention_head_dim
    per_token = 4 * dim * dim + 2 * dim * dim + 2 * dim * config.ffn_dim
    return {
        "linear": 2.0 * config.num_layers * queries * per_token,
        "attention": 4.0 * config.num_layers * queries * (keys + text) * dim,
    }
