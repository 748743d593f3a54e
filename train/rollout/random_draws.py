"""Every random choice of a run as a function of (seed, update, sample): no state, so nothing to lose or disagree on.

What all processes must agree on (step list, exit, semigroup triple, guidance) depends on the update alone; what belongs
to a clip (prompt, noise, score timestep) on the update and the clip's index in the global batch, whichever process
holds it. A resumed run, and a run on another number of processes, draws the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule, warp
from train.config.recipe import Recipe
from train.losses.semigroup import TimestepTriple, draw_triple

SCORE_RANGE = (20.0, 980.0)
ALIGN_STEPS = 200.0


def generator(*key: object) -> torch.Generator:
    """A CPU generator of its own for a key, such as (seed, "score", update, sample)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def number(*key: object) -> int:
    """A seed in [0, 2^31) for a key."""
    return int(torch.randint(2**31, (), generator=generator(*key)))


def uniform(*key: object) -> float:
    return float(torch.rand((), generator=generator(*key)))


@dataclass(frozen=True)
class UpdateDraws:
    """What one update does: the step list, where every block exits, the semigroup triple, the teacher's guidance."""

    schedule: Schedule
    exit_index: int
    triple: TimestepTriple | None
    guidance: float

    @property
    def exit_sigma(self) -> float:
        return self.schedule.sigmas[self.exit_index]

    @property
    def to_exit(self) -> Schedule:
        """The list up to and including the exit."""
        return Schedule(self.schedule.steps[: self.exit_index + 1], self.schedule.shift)


def draw_update(recipe: Recipe, update: int, role: str) -> UpdateDraws:
    """role: `generator` or `critic`, which draw independently."""
    key = (recipe.run.seed, role, update)
    counts, weights = zip(*sorted(recipe.rollout.share.items(), reverse=True), strict=True)
    picked = torch.multinomial(torch.tensor(weights), 1, generator=generator(*key, "K")).item()
    schedule = recipe.schedule(counts[int(picked)])
    exit_index = number(*key, "exit") % schedule.nfe
    triple = None
    if role == "generator" and recipe.loss.semigroup and schedule.nfe == 8:
        triple = draw_triple(schedule, exit_index, generator(*key, "triple"))
    low, high = recipe.loss.guidance, recipe.loss.guidance_max or recipe.loss.guidance
    return UpdateDraws(schedule, exit_index, triple, low + (high - low) * uniform(*key, "guidance"))


def score_sigmas(recipe: Recipe, update: int, samples: range, role: str, span: float = NUM_TRAIN_TIMESTEPS) -> Tensor:
    """Score noise levels [B]: uniform in [0, span), one for the whole clip, shifted, timesteps clamped to [20, 980]."""
    steps = torch.tensor([span * uniform(recipe.run.seed, role, update, i, "score") for i in samples])
    low, high = (t / NUM_TRAIN_TIMESTEPS for t in SCORE_RANGE)
    return warp(steps, recipe.rollout.shift).clamp(low, high).float()


def noise_like(shape: tuple[int, ...], recipe: Recipe, update: int, samples: range, role: str) -> Tensor:
    """Standard normal noise [B, *shape], each row from its own clip's generator."""
    rows = [torch.randn(shape, generator=generator(recipe.run.seed, role, update, i, "noise")) for i in samples]
    return torch.stack(rows)
