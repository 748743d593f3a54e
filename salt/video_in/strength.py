"""SDEdit on a student's own step list: every block starts from the noised latents of a source video.

A block starts at the first step that is at or below 1000 times the strength (steps before the shift), from
(1 - sigma) source + sigma noise at that step's noise level, and runs the steps from there on. Krea's list begins at the
strength itself instead, with as many steps as ever. At strength 1 a block starts from noise alone, as without a source;
where no step is low enough, and at strength 0, the source's latents are the block and only its context pass runs.
Source: SDEdit (arXiv 2108.01073); Krea realtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ..block_plan import BlockPlan, RolloutSettings
from ..errors import InputError
from ..model_input import Condition
from ..noise import NoiseSource
from ..schedule import NUM_TRAIN_TIMESTEPS, add_noise, step_list

DEFAULT_STRENGTH = 0.5
# Latents [B, C, frames, H, W] of a source from a latent frame on, as (start, frames); asked for rising starts, for the
# same ones more than once.
SourceLatents = Callable[[int, int], Tensor]


def source_of(latents: Tensor, offset: int = 0) -> SourceLatents:
    """Latents [B, C, F, H, W] that are all there, the first of which is latent frame `offset` of the clip.

    What they are asked for raises InputError where they do not have it.
    """

    def part(start: int, frames: int) -> Tensor:
        first = start - offset
        if first < 0 or first + frames > latents.shape[2]:
            found = f"found {latents.shape[2]} latent frames from {offset} on"
            raise InputError("video", f"{found}, expected those up to latent frame {start + frames}")
        return latents[:, :, first : first + frames]

    return part


def check_strength(strength: float) -> float:
    if not 0 <= strength <= 1:
        raise InputError("strength", f"found {strength}, expected 0 (the video as it is) to 1 (nothing of it)")
    return strength


def settings_at(settings: RolloutSettings, strength: float) -> RolloutSettings | None:
    """The settings with the steps that run at this strength, None where none do."""
    check_strength(strength)
    schedule = settings.schedule
    if schedule.rule == "krea" and 0 < strength < 1 and schedule.steps == step_list(schedule.nfe, "krea"):
        return replace(settings, schedule=replace(schedule, steps=step_list(schedule.nfe, "krea", strength)))
    skipped = 0 if strength == 1 else sum(step > NUM_TRAIN_TIMESTEPS * strength for step in schedule.steps)
    if skipped == schedule.nfe or strength == 0:
        return None
    if not skipped:
        return settings
    stepping = settings.stepping[skipped:] if isinstance(settings.stepping, tuple) else settings.stepping
    return replace(settings, schedule=replace(schedule, steps=schedule.steps[skipped:]), stepping=stepping)


class NoisedSource:
    """A source's latents with a noise source's initial noise at noise level sigma; further draws are its own."""

    def __init__(self, latents: SourceLatents, noise: NoiseSource, sigma: float) -> None:
        self.latents, self.noise, self.sigma = latents, noise, sigma

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.noise.seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        drawn = self.noise(start, frames, draw)
        return drawn if draw else add_noise(self.latents(start, frames).to(drawn), drawn, self.sigma)


class Strength:
    """How blocks start from a source video, for `rollout(video=...)` and a `BlockSource` of one's own.

    latents: of the source, all of them as a tensor [B, C, F, H, W], or as they are asked for. strength: 0 to 1.
    Raises InputError for another strength.
    """

    def __init__(self, latents: Tensor | SourceLatents, strength: float) -> None:
        self.latents = source_of(latents) if isinstance(latents, Tensor) else latents
        self.strength = check_strength(strength)
        self._settings: tuple[RolloutSettings, RolloutSettings | None] | None = None

    def settings(self, settings: RolloutSettings) -> RolloutSettings | None:
        """The settings with the steps that run, None where none do."""
        return settings_at(settings, self.strength)

    def __call__(self, plan: BlockPlan[Condition], start: int) -> BlockPlan[Condition]:
        """The plan of a block that starts at latent frame `start`, with its beginning taken from the source."""
        if self.strength == 1:
            return plan
        if self._settings is None or self._settings[0] is not plan.settings:
            # Settings that are the same object are what allows a fused pass.
            self._settings = (plan.settings, settings_at(plan.settings, self.strength))
        settings = self._settings[1]
        if settings is None:
            return replace(plan, latents=self.latents(start, plan.length(start)))
        call = settings.schedule.calls[0]
        # Krea's rule tells the level of the latents apart from the sigma of their x0.
        sigma = call.timestep / NUM_TRAIN_TIMESTEPS if settings.schedule.rule == "krea" else call.sigma
        return replace(plan, settings=settings, noise=NoisedSource(self.latents, plan.noise, sigma))
