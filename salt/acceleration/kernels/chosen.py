"""Which fused kernels a transformer uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...memory.policy import MemoryPolicy


@dataclass(frozen=True)
class Kernels:
    """norm: LayerNorm with modulation. residual: gated residual. memory: whether kernels write (norm of queries and
    keys, RoPE, quantization) and read (dequantization, rotation) a memory of this policy; None: of no policy."""

    norm: bool = False
    residual: bool = False
    memory: Callable[[MemoryPolicy], bool] | None = None


NO_KERNELS = Kernels()
