"""Windows of long clips: frames that the student generates after a past of its own, with gradient.

The past takes all steps of the drawn list, as in sampling: one whose blocks leave at the exit step, too, is poorer than
any sampled one. Sources: Self-Forcing++ (arXiv 2510.02283), LongLive (arXiv 2509.22622).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from salt.conditioning import Conditioning
from salt.models.causal_model import CausalModel
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.rollout import rollout
from train.config.recipe import Recipe
from train.rollout.gradient_rollout import ExitRecorder, RolloutResult
from train.rollout.random_draws import UpdateDraws, seed_for
from train.rollout.recipe_rollout import autocast_cache, clip_noise, continue_rollout, new_memory, rollout_settings


def window_starts(recipe: Recipe) -> list[int]:
    """Latent frames that a window of the recipe's clips may begin with: those that begin a block."""
    r = recipe.rollout
    return list(range(1 if r.independent_first_frame else 0, r.frames - r.window + 1, r.frames_per_block))


def draw_start(recipe: Recipe, update: int, role: str) -> int:
    """The window of an update, evenly among `window_starts`; the same for all clips, in all processes."""
    starts = window_starts(recipe)
    return starts[seed_for(recipe.run.seed, role, update, "window") % len(starts)]


def rollout_window(
    student: SaltTransformer3DModel, conditioning: Conditioning, recipe: Recipe, draws: UpdateDraws, seeds: list[int],
    *, start: int, masked: int, gradient: bool,
) -> RolloutResult:  # fmt: skip
    """`rollout.window` frames from `start` on, leaving at the drawn exit step; what comes after them is not generated.

    masked: latent frames at the window's beginning that carry neither loss nor gradient. The scores see the window as a
    clip of its own, whose first frames they would judge without a past.
    """
    r, text = recipe.rollout, conditioning.text
    noise = clip_noise(student, recipe, seeds, text.device, text.dtype)
    model = CausalModel(student)
    recorder = ExitRecorder(model, draws, recipe, start + masked if gradient else None, noise)
    with torch.no_grad(), autocast_cache(True):
        memory = new_memory(student, conditioning, recipe)
        if start:
            past = replace(rollout_settings(recipe, draws.schedule), fuse=True)
            for _ in rollout(model, conditioning, memory, noise, start, past):
                pass
        settings = rollout_settings(recipe, draws.schedule_to_exit)
        continue_rollout(recorder, conditioning, memory, noise, r.window, recipe, settings, on_step=recorder.on_step)
    x0 = recorder.exits.x0(draws.exit_sigma)
    return RolloutResult(x0, recorder.exits, noise, model, r.window - masked)
