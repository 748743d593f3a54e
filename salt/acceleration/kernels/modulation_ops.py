"""LayerNorm with modulation and the gated residual as torch operations, each one Triton kernel.

Tokens are [B, S, width] with F frames of equal length, modulation [B, F, width] in float32. What they compute is said
by their plain twins in `salt/models/modulation.py`. Both read their inputs once and write their output, nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launching import padded, warps


@torch.library.custom_op(
    "salt::modulated_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, float eps) -> Tensor",
)
def modulated_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float
) -> Tensor:
    """LayerNorm of x, times weight plus bias where given, then by frame times (1 + scale) plus shift where given."""
    from .device.modulation import modulated_norm_kernel

    kernel: Any = modulated_norm_kernel  # Triton's type of it has no launch options
    batch, rows, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    by_frame = x if scale is None else scale
    with torch.cuda.device_of(x):
        kernel[(rows, batch)](
            x, weight, bias, scale, shift, out, x.stride(0), x.stride(1), by_frame.stride(0), by_frame.stride(1),
            rows // by_frame.shape[1], rows, width, eps, AFFINE=weight is not None, MODULATED=scale is not None,
            BLOCK=padded(width), num_warps=warps(padded(width)),
        )  # fmt: skip
    return out


@torch.library.custom_op("salt::gated_residual", mutates_args=(), schema="(Tensor x, Tensor y, Tensor gate) -> Tensor")
def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate of the token's frame."""
    from .device.modulation import gated_residual_kernel

    kernel: Any = gated_residual_kernel
    batch, rows, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        kernel[(rows, batch)](
            x, y, gate, out, x.stride(0), x.stride(1), y.stride(0), y.stride(1), gate.stride(0), gate.stride(1),
            rows // gate.shape[1], rows, width, BLOCK=padded(width), num_warps=warps(padded(width)),
        )  # fmt: skip
    return out


@modulated_norm.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@gated_residual.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
