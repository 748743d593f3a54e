"""How far a clip is from the drawn clip of its caption: a continuous score beside ShapeBench's verdicts."""

from __future__ import annotations

import torch
from torch import Tensor

from train.shapes.bench import fit_background, track
from train.shapes.world import COLORS, SIZE, Scene, coverage, torus_delta

BACKGROUND_EVERY = 8  # frames that the clip's background is fitted to


def drawn_distance(pixels_3THW: Tensor, scene: Scene) -> float:
    """Squared distance of a clip [3, T, 64, 64] in [-1, 1] to the clip of `scene`, relative to the drawn object's.

    The drawn clip has the clip's own background, and moves as the caption says from the place that fits its frames best
    (captions leave both open). 0: as drawn; 1: the background alone; about 2: the object elsewhere.
    """
    frames = (pixels_3THW.float().clamp(-1, 1).transpose(0, 1) + 1) / 2
    background = fit_background(frames[::BACKGROUND_EVERY]).mean(0)
    time = torch.arange(len(frames), dtype=torch.float32)[:, None]
    start_T2 = track(pixels_3THW).center_T2 - time * torch.tensor(scene.velocity)
    center_T2 = _circular_mean(start_T2[~start_T2.isnan().any(1)]) + time * torch.tensor(scene.velocity)
    axis = torch.arange(SIZE) + 0.5
    dx, dy = torus_delta(axis - center_T2[:, :1])[:, None, :], torus_delta(axis - center_T2[:, 1:])[:, :, None]
    mask_T1HW = coverage(scene.shape, dx, dy)[:, None]
    wanted = mask_T1HW * (torch.tensor(COLORS[scene.color]).view(3, 1, 1) - background)
    return float((frames - background - wanted).square().sum() / wanted.square().sum())


def _circular_mean(places_N2: Tensor) -> Tensor:
    """The mean place on the torus, [2]; 0 of none."""
    angle = places_N2 * (2 * torch.pi / SIZE)
    return torch.atan2(angle.sin().sum(0), angle.cos().sum(0)) * (SIZE / (2 * torch.pi))
