"""Wall time on a device, and its measured ceilings: matmul and copy rates."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}
SECONDS_PER_RATE = 1.0


def synchronize(device: torch.device) -> None:
    """Wait for the work on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of `call`, including the work that it leaves running on the device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def best_rate(
    call: Callable[[], object], work: float, device: torch.device, seconds: float = SECONDS_PER_RATE
) -> float:
    """`work` per second in the fastest of the calls that fit into `seconds`, after a warm-up call."""
    call()
    best, spent = float("inf"), 0.0
    while spent < seconds:
        took = timed(call, device)
        best, spent = min(best, took), spent + took
    return work / best


def ceilings(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS_PER_RATE) -> dict[str, float]:
    """Rates of a device, per second; `seconds` are spent on each.

    flops: of a square matmul in `dtype`; fp8_flops: in float8, if the GPU has it; bytes: read and written by a copy on
    the device; to_host: bytes copied from the device to pinned memory.
    """
    n = MATMUL_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    rates = {"flops": best_rate(lambda: a @ b, 2 * n**3, device, seconds)}
    source = torch.empty(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates["bytes"] = best_rate(lambda: target.copy_(source), 2 * source.numel(), device, seconds)
    if device.type == "cuda":
        host = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=True)
        rates["to_host"] = best_rate(
            lambda: host.copy_(source, non_blocking=True), source.numel(), device, seconds
        )  # fmt: skip
        if torch.cuda.get_device_capability(device) >= (8, 9):
            x, y = (m.to(torch.float8_e4m3fn) for m in (a, b.T.contiguous().T))
            one = torch.ones((), device=device)
            options = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
            rates["fp8_flops"] = best_rate(lambda: torch._scaled_mm(x, y, **options), 2 * n**3, device, seconds)
    return rates
