"""Rotary position tables of Wan 2.1, for any frame position.

Same numbers as diffusers' `WanRotaryPosEmbed` (three axes: time, height, width; theta 10000), but built from positions
instead of sliced from a table of 1024, so that long rollouts and re-assigned positions (Infinity-RoPE) need no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def _angles(positions: Tensor, dim: int, theta: float) -> Tensor:
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    return positions.to(torch.float64)[:, None] * frequencies


def rotary_table(
    frame_positions: Sequence[int],
    height: int,
    width: int,
    head_dim: int,
    device: torch.device | str | None = None,
    theta: float = 10000.0,
) -> Rotary:
    """Tables for frames at the given temporal positions, each of height x width patch tokens.

    Angles are computed in float64 (positions in the hundred thousands keep their precision) and stored as float32.
    """
    t_dim, h_dim, w_dim = axis_dims(head_dim)
    f, frames = len(frame_positions), torch.tensor(list(frame_positions), device="cpu")
    t = _angles(frames, t_dim, theta).view(f, 1, 1, -1).expand(f, height, width, -1)
    h = _angles(torch.arange(height), h_dim, theta).view(1, height, 1, -1).expand(f, height, width, -1)
    w = _angles(torch.arange(width), w_dim, theta).view(1, 1, width, -1).expand(f, height, width, -1)
    angles = torch.cat([t, h, w], dim=-1).reshape(f * height * width, head_dim // 2)
    return Rotary(
        angles.cos().float().to(device, non_blocking=True), angles.sin().float().to(device, non_blocking=True)
    )


def wide(x: Tensor) -> Tensor:
    """x in at least float32: what norms, modulation and rotation are computed in."""
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
