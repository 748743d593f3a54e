"""Random draws of a run as functions of (seed, update, sample): no generator state to save, or to differ by process.

What all processes must agree on (step list, exit step, semigroup triple, guidance) depends on the update alone; what
belongs to a clip (prompt, noise, score timestep) on the update and the clip's index in the global batch. So a resumed
run, and a run on another number of processes, draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule, warp
from train.config.recipe import Recipe
from train.losses.semigroup import TimestepTriple, draw_triple

SCORE_TIMESTEPS = (20.0, 980.0)  # DMD's score timesteps are clamped to these (0.02 and 0.98 of 1000)
ALIGNMENT_STEPS = 200.0  # alignment noises with steps below this, before the shift


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator for a key, such as (seed, "score", update, sample)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seed_for(*key: object) -> int:
    """A seed in [0, 2^31) for a key."""
    return int(torch.randint(2**31, (), generator=generator_for(*key)))


def uniform_for(*key: object) -> float:
    """A uniform number in [0, 1) for a key."""
    return float(torch.rand((), generator=generator_for(*key)))


@dataclass(frozen=True)
class UpdateDraws:
    """The draws that one update shares over all clips: step list, exit step, semigroup triple, teacher guidance."""

    schedule: Schedule
    exit_index: int
    triple: TimestepTriple | None
    guidance: float
    first_exit: int = 0
    """Exit step of the first block, where the schedule has steps of its own for it."""

    @property
    def exit_sigma(self) -> float:
        return self.schedule.sigmas[self.exit_index]

    @property
    def first_exit_sigma(self) -> float:
        """Of a clip's first block."""
        return self.schedule.first.sigmas[self.first_exit] if self.schedule.first_steps else self.exit_sigma

    @property
    def schedule_to_exit(self) -> Schedule:
        """The step lists up to and including their exits."""
        schedule = self.schedule
        first_steps = schedule.first_steps[: self.first_exit + 1]
        return replace(schedule, steps=schedule.steps[: self.exit_index + 1], first_steps=first_steps)


def draw_update(recipe: Recipe, update: int, role: str) -> UpdateDraws:
    """Draw K, the exit step and the rest (Salt, section 3.3). role: `generator` or `critic`, drawn independently."""
    key = (recipe.run.seed, role, update)
    counts, weights = zip(*sorted(recipe.rollout.share.items(), reverse=True), strict=True)
    picked = torch.multinomial(torch.tensor(weights), 1, generator=generator_for(*key, "K")).item()
    schedule = recipe.schedule(counts[int(picked)])
    exit_index = seed_for(*key, "exit") % schedule.nfe
    triple = None
    if role == "generator" and recipe.loss.semigroup and schedule.nfe == 8:
        triple = draw_triple(schedule, exit_index, generator_for(*key, "triple"))
    low, high = recipe.loss.guidance, recipe.loss.guidance_max or recipe.loss.guidance
    first_exit = seed_for(*key, "first exit") % schedule.first.nfe if schedule.first_steps else 0
    return UpdateDraws(schedule, exit_index, triple, low + (high - low) * uniform_for(*key, "guidance"), first_exit)


def score_sigmas(
    recipe: Recipe, update: int, samples: range, role: str, max_step: float = NUM_TRAIN_TIMESTEPS,
    blocks: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Noise levels [B] of the scores, one per clip: step uniform in [0, max_step), shifted, clamped to [20, 980].

    blocks: latent frames of a clip's blocks, which get levels of their own, [B, F].
    """
    seed = recipe.run.seed
    steps = torch.tensor([max_step * uniform_for(seed, role, update, i, "score") for i in samples])
    if blocks:
        rows = [[uniform_for(seed, role, update, i, "score", b) for b in range(len(blocks))] for i in samples]
        steps = max_step * torch.tensor(rows).repeat_interleave(torch.tensor(blocks), dim=1)
    low, high = (t / NUM_TRAIN_TIMESTEPS for t in SCORE_TIMESTEPS)
    return warp(steps, recipe.rollout.shift).clamp(low, high).float()


def clip_noises(shape: tuple[int, ...], recipe: Recipe, update: int, samples: range, role: str) -> Tensor:
    """Standard normal noise [B, *shape] on the CPU, each row from its own clip's generator."""
    rows = [torch.randn(shape, generator=generator_for(recipe.run.seed, role, update, i, "noise")) for i in samples]
    return torch.stack(rows)
