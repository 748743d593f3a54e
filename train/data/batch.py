"""Micro-batch of a training update: indices in the global batch, conditioning, and per-clip seeds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from salt.conditioning import Conditioning
from train.config.recipe import Recipe
from train.rollout.random_draws import seed_for


@dataclass(frozen=True)
class Batch:
    """A micro-batch. samples: its clips' indices in the global batch. negative: the teacher's negative prompt.

    prompts: the clips' own, in words. first: [B, C, 1, H, W], the clean latents that the clips begin with, of pictures.
    """

    samples: range
    conditioning: Conditioning
    negative: Conditioning
    prompts: tuple[str, ...] = ()
    first: Tensor | None = None

    def seeds(self, recipe: Recipe, update: int, role: str) -> list[int]:
        """A seed of the rollout's noise for every clip."""
        return [seed_for(recipe.run.seed, role, update, i, "rollout") for i in self.samples]
