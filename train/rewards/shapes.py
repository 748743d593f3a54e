"""Rewards in the Shapes world, by ShapeBench's detectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from train.shapes.bench import score_clip
from train.shapes.world import SPEEDS, parse_caption


def motion(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Distance travelled over the distance that the prompt asks for, at most 1, less 1: 0 is right, -1 stands still."""
    rewards = []
    for clip, scene in zip(pixels, map(parse_caption, prompts), strict=True):
        travelled = score_clip(clip.float().cpu(), scene).pixels_per_frame
        rewards.append(min(travelled / SPEEDS[scene.speed], 1.0) - 1.0)
    return torch.tensor(rewards)
