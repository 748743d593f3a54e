"""Norms, modulation by frame and gated residuals of a transformer block: in plain torch, and by a fused kernel.

Tokens are [B, S, dim], S = F frames of equal length; modulation is [B, F, 1, dim] in float32, F = 1 for all frames.
All arithmetic is in float32 at least, with one rounding to the tokens' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..acceleration.kernels import modulation_ops
from ..acceleration.kernels.launching import DTYPES, fits
from ..rope import wide


def by_frame(x: Tensor, frames: int) -> Tensor:
    """Tokens as [B, F, tokens per frame, dim], in float32 at least."""
    return wide(x).unflatten(1, (frames, -1))


def norm_fits(norm: nn.LayerNorm, x: Tensor) -> bool:
    """Whether a kernel can compute this norm of x. Weights that a hook moves or casts are left to the module."""
    weights = (w for w in (norm.weight, norm.bias) if w is not None)
    return fits(x) and all(w.device == x.device and w.dtype in DTYPES for w in weights)


def modulated_norm(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor, fused: bool = False) -> Tensor:
    """The norm of x, times 1 + scale, plus shift."""
    if fused and isinstance(norm, nn.LayerNorm) and norm_fits(norm, x) and scale.dtype == torch.float32:
        return modulation_ops.modulated_norm(x, norm.weight, norm.bias, scale.squeeze(2), shift.squeeze(2), norm.eps)
    return (by_frame(norm(wide(x)), scale.shape[1]) * (1 + scale) + shift).flatten(1, 2).type_as(x)


def wide_norm(norm: nn.Module, x: Tensor, fused: bool = False) -> Tensor:
    """The norm of x, in x's dtype."""
    if fused and isinstance(norm, nn.LayerNorm) and norm_fits(norm, x):
        return modulation_ops.modulated_norm(x, norm.weight, norm.bias, None, None, norm.eps)
    return norm(wide(x)).type_as(x)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, fused: bool = False) -> Tensor:
    """x + y * gate."""
    if fused and x.dtype == y.dtype and gate.dtype == torch.float32 and fits(x) and fits(y):
        return modulation_ops.gated_residual(x, y, gate.squeeze(2))
    frames = gate.shape[1]
    return (by_frame(x, frames) + by_frame(y, frames) * gate).flatten(1, 2).type_as(x)
