"""StreamDiffusionV2's rule for video to video: less noise, and an earlier end of it, where the source moves.

The first chunk of a clip (5 pixel frames, 2 latent frames) is mixed with noise at level `scale` and starts at the
list's own first step. For chunk k (4 pixel frames, 1 latent frame), m is the largest of its frames' differences to the
frame before (root mean square over pixels in [-1, 1]), divided by 0.2 and cut to 1; then
    scale_k = 0.9 (scale - 0.1 m) + 0.1 scale_{k-1},    first step int(1000 scale_k) - 100,
so the model is called for less noise than there is. Later steps are the list's. Source: StreamDiffusionV2 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..block_plan import BlockPlan, RolloutSettings
from ..model_input import Condition
from ..schedule import Schedule
from .strength import NoisedSource, SourceLatents, check_strength, source_of

DEFAULT_NOISE_SCALE = 0.8
MOST_MOTION = 0.2  # a root mean square from which on motion counts as full
MOTION_WEIGHT, SMOOTHING, STEPS_BELOW = 0.1, 0.1, 100

# Motion of a chunk (0 to 1), as (start, frames) in latent frames.
Motion = Callable[[int, int], float]


class PixelMotion:
    """The `Motion` of pixel frames [B, 3, T, H, W] in [-1, 1] that pass through it: an iterator of what it is given.

    A chunk's motion is known once its frames have passed, and until that of a later chunk is asked for.
    """

    def __init__(self, pixels: Iterator[Tensor], temporal_scale: int = 4) -> None:
        self.pixels, self.temporal_scale = pixels, temporal_scale
        self.before: Tensor | None = None
        self.differences: list[float] = []  # of pixel frames from `first` on, each to the frame before
        self.first = 1

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        pixels = next(self.pixels)
        frames = pixels if self.before is None else torch.cat([self.before, pixels], dim=2)
        self.before = pixels[:, :, -1:]
        self.differences += _differences(frames)
        return pixels

    def __call__(self, start: int, frames: int) -> float:
        """Frames that the source lacks at its end do not move."""
        first, stop = (self.temporal_scale * (n - 1) + 1 for n in (start, start + frames))
        self.differences = self.differences[max(first - self.first, 0) :]
        self.first = max(first, self.first)
        return min(max(self.differences[: stop - self.first], default=0.0) / MOST_MOTION, 1.0)


def _differences(pixels: Tensor) -> list[float]:
    """Root mean squares of each frame's difference to the frame before, [B, 3, T, H, W] -> T - 1."""
    return (pixels[:, :, 1:] - pixels[:, :, :-1]).square().mean((0, 1, 3, 4)).sqrt().tolist()


def motion_between(before: Tensor, after: Tensor) -> float:
    """Motion (0 to 1) from one frame [B, 3, 1, H, W] in [-1, 1] to the next."""
    return min(_differences(torch.cat([before, after], dim=2))[0] / MOST_MOTION, 1.0)


def motion_of(pixels: Tensor) -> Motion:
    """The motion of a whole clip [B, 3, T, H, W] in [-1, 1]."""
    meter = PixelMotion(iter([pixels]))
    next(meter)
    return meter


class MotionNoise:
    """How chunks start from a source video by this rule, for `rollout(video=...)`; chunks are asked for in order.

    latents: of the source, as `Strength` takes them. motion: of the same source. scale: noise level of the first chunk,
    0 to 1 (StreamDiffusionV2: 0.8, and 0.7 without stream batch); where no step is left, the source's latents are the
    chunk. Steps of the list that are not below the first one are left out.
    """

    def __init__(self, latents: Tensor | SourceLatents, motion: Motion, scale: float) -> None:
        self.latents = source_of(latents) if isinstance(latents, Tensor) else latents
        self.motion, self.strength = motion, check_strength(scale)
        self.scale: float | None = None  # of the latest chunk

    def settings(self, settings: RolloutSettings) -> RolloutSettings | None:
        """The settings of the first chunk; None at scale 0, where no step runs."""
        return settings if self.strength else None

    def chunk(self, start: int, frames: int, first_step: float) -> tuple[float, float]:
        """Noise level and first step of the next chunk."""
        if self.scale is None:
            self.scale = self.strength
            return self.scale, first_step
        wanted = self.strength - MOTION_WEIGHT * self.motion(start, frames)
        self.scale = wanted * (1 - SMOOTHING) + self.scale * SMOOTHING
        return self.scale, int(1000 * self.scale) - STEPS_BELOW

    def __call__(self, plan: BlockPlan[Condition], start: int) -> BlockPlan[Condition]:
        frames = plan.length(start)
        latents = self.latents(start, frames)  # whose pixels have passed when their motion is asked for
        scale, first = self.chunk(start, frames, plan.settings.schedule.steps[0])
        schedule = steps_from(plan.settings.schedule, first)
        if schedule is None or self.strength == 0:
            return replace(plan, latents=latents)
        settings = replace(plan.settings, schedule=schedule)
        return replace(plan, settings=settings, noise=NoisedSource(self.latents, plan.noise, scale))


def steps_from(schedule: Schedule, first: float) -> Schedule | None:
    """The schedule with its first step replaced, without those that are not below it; None for a step at or below 0."""
    if first <= 0:
        return None
    return replace(schedule, steps=(float(first), *(s for s in schedule.steps[1:] if s < first)))
