"""What the device itself reaches: the matmul and the copy that every figure is held against, measured here and now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

SIZE = {"cuda": 8192, "cpu": 2048}
COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes
SECONDS = 1.0


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of `call`, what it has left running on the device included."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def best_rate(call: Callable[[], object], work: float, device: torch.device) -> float:
    """work per second in the best of the calls that fit into SECONDS, after one to warm up."""
    call()
    best, spent = float("inf"), 0.0
    while spent < SECONDS:
        best = min(best, timed(call, device))
        spent += best
    return work / best


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """flops: of a square matmul per second; fp8_flops where the GPU has it; bytes: read and written per second by a
    copy on the device; to_host: bytes per second from the device to pinned memory."""
    n = SIZE[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    found = {"flops": best_rate(lambda: a @ b, 2 * n**3, device)}
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["bytes"] = best_rate(lambda: target.copy_(source), 2 * source.numel(), device)
    if device.type == "cuda":
        host = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=True)
        found["to_host"] = best_rate(lambda: host.copy_(source, non_blocking=True), source.numel(), device)
        if torch.cuda.get_device_capability(device) >= (8, 9):
            x, y = (m.to(torch.float8_e4m3fn) for m in (a, b.T.contiguous().T))
            one = torch.ones((), device=device)
            options = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
            found["fp8_flops"] = best_rate(lambda: torch._scaled_mm(x, y, **options), 2 * n**3, device)
    return found


def forward_flops(config: Any, queries: int, keys: int, text: int) -> dict[str, float]:
    """Multiplications and additions of one forward of a Wan transformer, its linear layers and its attention apart.

    queries: tokens in the forward; keys: tokens that self-attention sees; text: prompt tokens, whose keys and values
    are there already. Embeddings and head, under one percent, are left out.
    """
    dim = config.num_attention_heads * config.attention_head_dim
    per_token = 4 * dim * dim + 2 * dim * dim + 2 * dim * config.ffn_dim
    return {
        "linear": 2.0 * config.num_layers * queries * per_token,
        "attention": 4.0 * config.num_layers * queries * (keys + text) * dim,
    }
