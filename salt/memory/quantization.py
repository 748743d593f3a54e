"""Quantization of keys and values: int8 and fp8 at half the size of bfloat16, int4 at 28 %.

A row is one token of one head, x [..., head_dim]; it is quantised symmetrically, with its scales stored beside it.
int8 and fp8 have one float32 scale per row, from its largest magnitude. int4 has one float16 scale per GROUP values,
signed so that the value of largest magnitude is exactly -8 of it, as in GGML's Q4_0: keys have a few large channels,
which with one scale per row would leave few of the sixteen levels for the others. Two int4 codes share a byte: the
first half of the row in the low bits, the second half in the high ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .policy import Precision

GROUP = 32


def storage_dtype(precision: Precision, model_dtype: torch.dtype) -> torch.dtype:
    """dtype of the buffers. fp8 is stored in uint8 buffers (float8 has no index operations).

    Raises InputError where this torch has no float8_e4m3fn.
    """
    if precision == "fp8" and not hasattr(torch, "float8_e4m3fn"):
        raise InputError("precision", f"needs a torch with float8_e4m3fn (this is {torch.__version__})", "fp8")
    return {"model": model_dtype, "int8": torch.int8, "fp8": torch.uint8, "int4": torch.uint8}[precision]


def row_layout(precision: Precision, head_dim: int) -> tuple[int, int, torch.dtype]:
    """Number of codes per row, number of scales per row (0 for `model`), and the scales' dtype.

    Raises InputError for a head_dim that int4 cannot halve into whole groups.
    """
    if precision == "model":
        return head_dim, 0, torch.float32
    if precision != "int4":
        return head_dim, 1, torch.float32
    group = min(GROUP, head_dim // 2)
    if not group or head_dim % (2 * group):
        raise InputError("precision", f"needs a head_dim that is a multiple of {2 * GROUP}, found {head_dim}", "int4")
    return head_dim // 2, head_dim // group, torch.float16


def row_bytes(precision: Precision, model_dtype: torch.dtype, head_dim: int) -> int:
    """Bytes of one stored row, its scales included."""
    codes, scales, scale_dtype = row_layout(precision, head_dim)
    return codes * storage_dtype(precision, model_dtype).itemsize + scales * scale_dtype.itemsize


def quantise(x: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """x [..., head_dim] -> (codes [..., codes per row], scale [..., scales per row])."""
    x = x.float()
    if precision == "int4":
        return _quantise_int4(x)
    limit = 127.0 if precision == "int8" else torch.finfo(torch.float8_e4m3fn).max
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / limit
    if precision == "int8":
        return (x / scale).round().to(torch.int8), scale
    return (x / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale


def _quantise_int4(x: Tensor) -> tuple[Tensor, Tensor]:
    head_dim = x.shape[-1]
    _, groups, scale_dtype = row_layout("int4", head_dim)
    grouped = x.unflatten(-1, (groups, -1))
    extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scale = (extreme / -8).to(scale_dtype)
    safe = torch.where(scale == 0, 1, scale).float()
    codes = ((grouped / safe).round().clamp(-8, 7) + 8).to(torch.uint8).flatten(-2)
    low, high = codes.split(head_dim // 2, dim=-1)
    return low | (high << 4), scale.squeeze(-1)


def dequantise_into(out: Tensor, codes: Tensor, scale: Tensor, precision: Precision) -> None:
    """Inverse of `quantise`, written to `out` [..., head_dim] in its dtype.

    Products are computed in float32 and rounded once; no float32 tensor is made.

    On a GPU int8 is one kernel. fp8 has no multiplication of its own, and is converted first; that is exact, as every
    value of it is one of `out`'s dtypes. Of int4, a code's four bits are shifted to the top of a byte with its sign,
    which makes it 16 times as large, and its scale is divided by 16, which is exact.
    """
    if precision == "int8":
        torch.mul(codes, scale, out=out)
    elif precision == "fp8":
        out.copy_(codes.view(torch.float8_e4m3fn)).mul_(scale)
    else:
        signed = codes.view(torch.int8) ^ -0x78  # 0x88: both codes from 0 .. 15 to -8 .. 7
        nibbles = (signed << 4, signed & -0x10)
        for levels, scales, part in zip(nibbles, scale.chunk(2, dim=-1), out.chunk(2, dim=-1), strict=True):
            groups = (scales.shape[-1], -1)
            factors = (scales.float() / 16).unsqueeze(-1)
            torch.mul(levels.unflatten(-1, groups), factors, out=part.unflatten(-1, groups))
