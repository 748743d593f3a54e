"""Rotary position tables of Wan 2.1, for any frame position.

The numbers of diffusers' `WanRotaryPosEmbed` (three axes: time, height, width; theta 10000), but computed from
positions instead of sliced from a table of 1024, so that long rollouts and re-assigned positions (Infinity-RoPE) have
no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """cos and sin, each [S, head_dim // 2] float32; S = frames * height * width tokens, columns fastest."""

    cos: Tensor
    sin: Tensor


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How Wan splits a head over (time, height, width): height and width get 2 * (head_dim // 6), time the rest."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached tables serve training too
def _axis_table(positions: tuple[float, ...], dim: int, theta: float, device: torch.device | str | None) -> Rotary:
    """cos and sin [N, dim // 2] of one axis.

    Angles are in float64: positions in the hundred thousands keep their precision.
    """
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    angles = torch.tensor(positions, dtype=torch.float64, device="cpu")[:, None] * frequencies
    return Rotary(*(x.float().to(device, non_blocking=True) for x in (angles.cos(), angles.sin())))


def _middles(count: int, stride: int) -> tuple[float, ...]:
    return tuple(i * stride + (stride - 1) / 2 for i in range(count))


def rotary_table(
    frame_positions: Sequence[int],
    height: int,
    width: int,
    head_dim: int,
    device: torch.device | str | None = None,
    theta: float = 10000.0,
    stride: int = 1,
) -> Rotary:
    """Tables for frames at the given temporal positions, each of height x width patch tokens, in float32.

    stride: of larger patches, each of stride x stride usual ones, at the middle of those.
    The few numbers of each axis are computed on the host and cached; the device expands them to all tokens.
    """
    frames = len(frame_positions)
    t_dim, h_dim, w_dim = axis_dims(head_dim)
    t = _axis_table(tuple(frame_positions), t_dim, theta, device)
    h = _axis_table(_middles(height, stride), h_dim, theta, device)
    w = _axis_table(_middles(width, stride), w_dim, theta, device)

    def expanded(t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        axes = (t.view(frames, 1, 1, -1), h.view(1, height, 1, -1), w.view(1, 1, width, -1))
        return torch.cat([x.expand(frames, height, width, -1) for x in axes], dim=-1).flatten(0, 2)

    return Rotary(expanded(t.cos, h.cos, w.cos), expanded(t.sin, h.sin, w.sin))


# Every step of a block needs the same tables; few geometries are in use at a time. Cached tables serve training too.
cached_rotary_table = lru_cache(maxsize=32)(torch.inference_mode(False)(rotary_table))


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider: the dtype that norms, modulation and rotation are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def apply_rotary(x_BSHD: Tensor, rotary: Rotary) -> Tensor:
    """Rotate neighbouring channel pairs of x [B, S, heads, head_dim]; at least float32 inside, x's dtype outside."""
    pairs = wide(x_BSHD).unflatten(-1, (-1, 2))
    cos, sin = rotary.cos[None, :, None], rotary.sin[None, :, None]
    if torch.compiler.is_compiling():  # which fuses real arithmetic, and knows no complex numbers
        even, odd = pairs.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:  # one pass over x instead of seven
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x_BSHD.dtype)
