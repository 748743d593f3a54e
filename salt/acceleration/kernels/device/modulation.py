"""Triton kernels of a transformer block: LayerNorm with modulation, and the gated residual. One program per token."""

from __future__ import annotations

import triton
import triton.language as tl

from .functions import rounded


@triton.jit
def modulated_norm_kernel(
    x, weight, bias, scale, shift, out, x_batch, x_row, modulation_batch, modulation_frame, tokens_per_frame,
    rows, width, eps, AFFINE: tl.constexpr, MODULATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + batch * x_batch + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
    y = centred / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    if AFFINE:
        y = y * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        y += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if MODULATED:
        at = batch * modulation_batch + (row // tokens_per_frame) * modulation_frame + column
        y = y * (1.0 + tl.load(scale + at, mask=inside, other=0.0)) + tl.load(shift + at, mask=inside, other=0.0)
    kind: tl.constexpr = out.dtype.element_ty
    tl.store(out + (batch * rows + row) * width + column, rounded(y, kind).to(kind), mask=inside)


@triton.jit
def gated_residual_kernel(
    x, y, gate, out, x_batch, x_row, y_batch, y_row, gate_batch, gate_frame, tokens_per_frame, rows, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    old = tl.load(x + batch * x_batch + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    new = tl.load(y + batch * y_batch + row * y_row + column, mask=inside, other=0.0).to(tl.float32)
    at = batch * gate_batch + (row // tokens_per_frame) * gate_frame + column
    total = old + new * tl.load(gate + at, mask=inside, other=0.0)
    kind: tl.constexpr = out.dtype.element_ty
    tl.store(out + (batch * rows + row) * width + column, rounded(total, kind).to(kind), mask=inside)
