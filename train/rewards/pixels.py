"""Rewards that need no model: statistics of pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def motion(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean change of a pixel from frame to frame over the clip's standard deviation: 0 for a still picture.

    It does not tell motion of a camera, or flicker, from motion of things.
    """
    video = pixels.float()
    change = video.diff(dim=2).abs().mean(dim=(1, 2, 3, 4))
    return change / video.std(dim=(1, 2, 3, 4)).clamp_min(1e-6)
