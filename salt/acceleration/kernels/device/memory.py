"""Triton kernels of self-attention over a memory. One program per token, batch row and one of queries, keys, values."""

from __future__ import annotations

import triton
import triton.language as tl

from .functions import load_row, normed, rotated, store_row


@triton.jit
def prepared_row(
    source, weight, cos, sin, eps, head, channel, inside, like: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A token's queries or keys: after their norm, and after that also rotated."""
    at, across = head * DIM + channel, head * DIM + (channel ^ 1)
    x = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(source + across, mask=inside, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(tl.sum(x * x, 1), 0) / (HEADS * DIM) + eps)
    x = normed(x, weight, at, inside, factor, like)
    partner = normed(partner, weight, across, inside, factor, like)
    return x, rotated(x, partner, cos, sin, channel, like, DIM)


@triton.jit
def rotate_and_write_kernel(
    q, k, v, q_weight, k_weight, cos, sin, eps, q_out, keys, values, ring_k, ring_v, ring_k_scale, ring_v_scale, slots,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, rows, read_rows, first_row, ring_slots, tokens_per_frame,
    READ: tl.constexpr, WRITE: tl.constexpr, SLOTS: tl.constexpr, ROTATE_STORED: tl.constexpr,
    PRECISION: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, HEADS_P: tl.constexpr,
    DIM_P: tl.constexpr,
):  # fmt: skip
    row, batch, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head, channel = tl.arange(0, HEADS_P)[:, None], tl.arange(0, DIM_P)[None, :]
    inside = (head < HEADS) & (channel < DIM)
    at = head * DIM + channel
    kind: tl.constexpr = q_out.dtype.element_ty
    cos_row, sin_row = cos + row * (DIM // 2), sin + row * (DIM // 2)
    read_at = (batch * read_rows + first_row + row) * (HEADS * DIM) + at
    if part == 0:
        source = q + batch * q_batch + row * q_row
        _, x = prepared_row(
            source, q_weight, cos_row, sin_row, eps, head, channel, inside, kind, HEADS, DIM
        )  # fmt: skip
        tl.store(q_out + (batch * rows + row) * (HEADS * DIM) + at, x.to(kind), mask=inside)
    else:
        slot = row // tokens_per_frame
        if SLOTS:
            slot = tl.load(slots + slot)
        ring_row = (batch * ring_slots + slot) * tokens_per_frame + row % tokens_per_frame
        if part == 1:
            source = k + batch * k_batch + row * k_row
            plain, turned = prepared_row(
                source, k_weight, cos_row, sin_row, eps, head, channel, inside, kind, HEADS, DIM
            )  # fmt: skip
            if READ:
                tl.store(keys + read_at, turned.to(kind), mask=inside)
            if WRITE:
                stored = turned if ROTATE_STORED else plain
                store_row(
                    ring_k, ring_k_scale, ring_row, stored, head, channel, inside,
                    HEADS, DIM, GROUP, PRECISION, HEADS_P, DIM_P,
                )  # fmt: skip
        else:
            x = tl.load(v + batch * v_batch + row * v_row + at, mask=inside, other=0.0).to(tl.float32)
            if READ:
                tl.store(values + read_at, x.to(kind), mask=inside)
            if WRITE:
                store_row(
                    ring_v, ring_v_scale, ring_row, x, head, channel, inside,
                    HEADS, DIM, GROUP, PRECISION, HEADS_P, DIM_P,
                )  # fmt: skip


@triton.jit
def read_kernel(
    ring_k, ring_v, ring_k_scale, ring_v_scale, slots, cos, sin, keys, values,
    ring_slots, read_rows, tokens_per_frame,
    SLOTS: tl.constexpr, ROTATE: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, HEADS_P: tl.constexpr, DIM_P: tl.constexpr,
):  # fmt: skip
    row, batch, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head, channel = tl.arange(0, HEADS_P)[:, None], tl.arange(0, DIM_P)[None, :]
    inside = (head < HEADS) & (channel < DIM)
    kind: tl.constexpr = keys.dtype.element_ty
    slot = row // tokens_per_frame
    if SLOTS:
        slot = tl.load(slots + slot)
    ring_row = (batch * ring_slots + slot) * tokens_per_frame + row % tokens_per_frame
    at = (batch * read_rows + row) * (HEADS * DIM) + head * DIM + channel
    if part == 0:
        x = load_row(ring_k, ring_k_scale, ring_row, head, channel, inside, kind, HEADS, DIM, GROUP, PRECISION)
        if ROTATE:
            partner = load_row(
                ring_k, ring_k_scale, ring_row, head, channel ^ 1, inside, kind, HEADS, DIM, GROUP, PRECISION
            )  # fmt: skip
            x = rotated(x, partner, cos + row * (DIM // 2), sin + row * (DIM // 2), channel, kind, DIM)
        tl.store(keys + at, x.to(kind), mask=inside)
    else:
        x = load_row(ring_v, ring_v_scale, ring_row, head, channel, inside, kind, HEADS, DIM, GROUP, PRECISION)
        tl.store(values + at, x.to(kind), mask=inside)
