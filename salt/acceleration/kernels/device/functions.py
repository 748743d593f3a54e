"""Functions that Triton kernels call: rounding, a row of one token with its norm and rotation, quantization.

A row is one token of all heads, [heads, channels], both padded to powers of two. Written for the operations that every
Triton since 3.2 has, on every card, and in Triton's interpreter, whose casts to bfloat16 cut off instead of rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, like: tl.constexpr):
    """float32 x, rounded to the nearest number of the dtype `like` (ties to even)."""
    if like == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    elif like == tl.float16:
        x = x.to(tl.float16).to(tl.float32)
    return x


@triton.jit
def nearest(x):
    """float32 x of magnitude below 2**22 as a whole number in float32, ties to even."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def normed(x, weight, at, inside, factor, like: tl.constexpr):
    """x times its RMS norm's factor and the weight at the same place."""
    return rounded(x * factor * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32), like)


@triton.jit
def rotated(x, partner, cos, sin, channel, like: tl.constexpr, DIM: tl.constexpr):
    """x turned with the neighbouring channel of its pair. cos, sin: of this token, one per pair."""
    c = tl.load(cos + channel // 2, mask=channel < DIM, other=0.0)
    s = tl.load(sin + channel // 2, mask=channel < DIM, other=0.0)
    sign = tl.where(channel % 2 == 0, -1.0, 1.0)
    return rounded(x * c + sign * partner * s, like)


@triton.jit
def as_fp8(x):
    """float32 x of magnitude up to 448 as the bits of the nearest float8_e4m3fn, ties to even, in int32."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    subnormal = nearest(tl.abs(x) * 512.0).to(tl.int32)
    return tl.where(tl.abs(x) < 0.015625, subnormal, normal) | ((bits >> 24) & 0x80)


@triton.jit
def from_fp8(code):
    """float32 of the bits of a float8_e4m3fn, which are a float16's of 1/256 of it."""
    bits = code.to(tl.int32)
    half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.int16)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def store_row(
    target, scales, row, x, head, channel, inside,
    HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
    HEADS_P: tl.constexpr, DIM_P: tl.constexpr,
):  # fmt: skip
    """Write a row into a memory's buffers as its precision asks (`salt/memory/quantization.py`)."""
    at = row * (HEADS * DIM) + head * DIM + channel
    if PRECISION == "model":
        tl.store(target + at, x.to(target.dtype.element_ty), mask=inside)
    elif PRECISION == "int4":
        # [heads, group, place in the group]; the scale is signed, so that the first largest value becomes -8.
        groups: tl.constexpr = DIM // GROUP
        grouped = tl.reshape(x, [HEADS_P, groups, GROUP])
        place = tl.arange(0, GROUP)[None, None, :]
        largest = tl.max(tl.abs(grouped), 2)[:, :, None]
        first = tl.min(tl.where(tl.abs(grouped) == largest, place, GROUP), 2)[:, :, None]
        extreme = tl.sum(tl.where(place == first, grouped, 0.0), 2)
        scale = (extreme * -0.125).to(tl.float16)
        head_of_group = tl.arange(0, HEADS_P)[:, None]
        group = tl.arange(0, groups)[None, :]
        tl.store(scales + (row * HEADS + head_of_group) * groups + group, scale, mask=head_of_group < HEADS)
        divisor = scale.to(tl.float32)
        divisor = tl.where(divisor == 0.0, 1.0, divisor)[:, :, None]
        level = nearest(tl.math.div_rn(grouped, tl.broadcast_to(divisor, grouped.shape)))
        code = tl.minimum(tl.maximum(level, -8.0), 7.0).to(tl.int32) + 8
        halves = tl.reshape(code, [HEADS_P, 2, DIM // 2])  # the first in the low bits, the second in the high ones
        packed = tl.sum(halves << (4 * tl.arange(0, 2)[None, :, None]), 1)
        byte = tl.arange(0, DIM // 2)[None, :]
        places = (row * HEADS + head_of_group) * (DIM // 2) + byte
        tl.store(target + places, packed.to(tl.uint8), mask=(head_of_group < HEADS) & (byte < DIM // 2))
    else:
        limit: tl.constexpr = 127.0 if PRECISION == "int8" else 448.0
        scale = tl.math.div_rn(tl.maximum(tl.max(tl.abs(x), 1), 1e-12), tl.full([HEADS_P], limit, tl.float32))
        head_of_scale = tl.arange(0, HEADS_P)
        tl.store(scales + row * HEADS + head_of_scale, scale, mask=head_of_scale < HEADS)
        level = tl.math.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
        if PRECISION == "int8":
            tl.store(target + at, nearest(level).to(tl.int8), mask=inside)
        else:
            tl.store(target + at, as_fp8(level).to(tl.uint8), mask=inside)


@triton.jit
def load_row(
    source, scales, row, head, channel, inside, like: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A row of a memory's buffers at these channels, in float32, rounded to the model's dtype `like`."""
    if PRECISION == "model":
        return tl.load(source + row * (HEADS * DIM) + head * DIM + channel, mask=inside, other=0.0).to(tl.float32)
    elif PRECISION == "int4":
        half: tl.constexpr = DIM // 2
        groups: tl.constexpr = DIM // GROUP
        code = tl.load(source + (row * HEADS + head) * half + channel % half, mask=inside, other=0).to(tl.int32)
        level = ((code >> (4 * (channel // half))) & 15) - 8
        scale = tl.load(scales + (row * HEADS + head) * groups + channel // GROUP, mask=inside, other=0.0)
        return rounded(level.to(tl.float32) * scale.to(tl.float32), like)
    else:
        code = tl.load(source + row * (HEADS * DIM) + head * DIM + channel, mask=inside, other=0)
        scale = tl.load(scales + row * HEADS + head, mask=head < HEADS, other=0.0)
        if PRECISION == "int8":
            return rounded(code.to(tl.float32) * scale, like)
        else:
            return rounded(from_fp8(code) * scale, like)
