"""What the last stage rolls out: whole clips, first blocks alone, and what comes late in a long clip.

Whole clips carry all of Salt's losses. Most clips that fail begin wrong, and what the first evaluation began the last
one cannot mend: first blocks, which have no past, are short enough to carry gradient through every evaluation, many at
a time. Over a long clip objects are lost, most of them where they cross the border: the last frames of a clip that the
student has made by itself, past more than its memory keeps, are set beside what comes late in a real one (the idea of
Self-Forcing++, arXiv 2510.02283, and of LongLive's streaming long tuning, arXiv 2509.22622).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.rollout import rollout
from salt.sampling import sample_bidirectional
from train.config.loader import load_recipe
from train.config.recipe import Recipe
from train.rollout.gradient_rollout import ExitRecord, ExitRecorder, RolloutResult, rollout_with_grad
from train.rollout.random_draws import UpdateDraws
from train.rollout.recipe_rollout import autocast_cache, continue_rollout, new_memory, rollout_settings

OPENINGS = 32  # first blocks at a time, about the cost of 8 clips of 12 latent frames
LONG = 3  # times as long as the window is a clip whose end is looked at
FIRST_BLOCK = 2.0  # times as much as a frame of a later block: most clips that fail, fail there

Roll = Callable[..., RolloutResult]  # arguments: as `rollout_with_grad`'s


@dataclass
class Pairs:
    """Clips the student made beside real ones of the same scenes: made, real [B, 16, F, 8, 8], scene numbers [B]."""

    made: Tensor
    real: Tensor
    scenes: Tensor

    def __add__(self, other: Pairs) -> Pairs:
        both = ((self.made, other.made), (self.real, other.real), (self.scenes, other.scenes))
        return Pairs(*(torch.cat(two) for two in both))


@dataclass
class Kind:
    """One kind of rollout.

    weight_F [F]: what each frame counts before the judge, 1 in all. scored_F [F]: 1 where the scores' gradient is
    taken, else 0. late: its real clips are cut from after their start. replay: its newest pairs.
    """

    recipe: Recipe
    roll: Roll
    weight_F: Tensor
    scored_F: Tensor
    late: bool = False
    replay: list[Pairs] = field(default_factory=list)

    def again(self, recent: int, generator: torch.Generator) -> Pairs | None:
        """One of the `recent` newest rollouts before this one, if there are any."""
        newest = self.replay[-recent:]
        return newest[int(torch.randint(len(newest), (), generator=generator))] if newest else None


def whole_recipe(teacher: str, seed: int, frames: int, shift: float) -> Recipe:
    """Salt's losses on the Shapes world, as the study's arm `all` has them, more of them at the two low step counts."""
    return load_recipe(
        "tiny_salt",
        [
            f"models.teacher={teacher}", f"rollout.frames={frames}", f"rollout.shift={shift}",
            "rollout.share={8: 0.1, 4: 0.4, 2: 0.5}", "loss.align_start=0", "optimisation.batch=8",
            "optimisation.micro_batch=8", "optimisation.lr=2e-5", "optimisation.critic_lr=2e-4",
            "optimisation.precision=bf16", f"run.seed={seed}",
        ],
    )  # fmt: skip


def _beside(whole: Recipe, seed: int, **rollout: Any) -> Recipe:
    """The recipe of another kind: DMD alone, and noise of its own."""
    return replace(
        whole,
        rollout=replace(whole.rollout, **rollout),
        loss=replace(whole.loss, semigroup=0.0, align="none"),
        run=replace(whole.run, seed=whole.run.seed + seed),
    )


def kinds(whole: Recipe, opening_flow: Any, device: str) -> tuple[Kind, Kind, Kind]:
    """The three, in the order the stage takes them up. opening_flow: the student as first blocks call it."""
    frames, block = whole.rollout.frames, whole.rollout.frames_per_block
    weight_F = torch.ones(frames, device=device)
    weight_F[:block] = FIRST_BLOCK
    first_F, even_F = torch.ones(block, device=device), torch.ones(frames, device=device)
    # The teacher takes a clip's first frames for a beginning, which they are not late in it.
    known_F = even_F.clone()
    known_F[:block] = 0
    opening = _beside(whole, 1000, frames=block, share={4: 0.2, 2: 0.8})
    opening = replace(opening, optimisation=replace(opening.optimisation, batch=OPENINGS, micro_batch=OPENINGS))
    # The memory of the shipped student's spec.
    late = _beside(whole, 2000, frames=LONG * frames, window=frames, memory="relative:3,window:12")

    def roll_of_flow(_student: Any, *rest: Any, gradient: bool) -> RolloutResult:
        return roll_opening(opening_flow, *rest, gradient=gradient)

    return (
        Kind(whole, rollout_with_grad, weight_F / weight_F.sum(), even_F),
        Kind(opening, roll_of_flow, first_F / block, first_F),
        Kind(late, roll_late, even_F / frames, known_F, late=True),
    )


def roll_opening(
    flow: Any, conditioning: Conditioning, recipe: Recipe, choices: UpdateDraws, seeds: list[int], *, gradient: bool
) -> RolloutResult:
    """First blocks, with gradient through all evaluations of the schedule.

    flow: the student as a whole-clip call, which is what a block without a memory is.
    """
    r, text = recipe.rollout, conditioning.text
    noise = SeededNoise(seeds, len(seeds), 16, r.height, r.width, text.device)

    def model(inputs: ModelInput[Conditioning], /) -> Tensor:
        return flow(inputs.x, inputs.timestep, inputs.conditioning.text, return_dict=False)[0].float()

    with torch.set_grad_enabled(gradient):
        x0 = sample_bidirectional(model, conditioning, noise, r.frames, rollout_settings(recipe, choices.schedule))
    return RolloutResult(x0, ExitRecord(), noise, model)


def roll_late(
    student: Any, conditioning: Conditioning, recipe: Recipe, choices: UpdateDraws, seeds: list[int], *, gradient: bool
) -> RolloutResult:
    """The last `window` frames of a clip, exiting as in any rollout, past frames that took all their steps.

    `roll` lets the frames before the window exit early too. A past as poor as one evaluation leaves it is none that the
    sampler ever has.
    """
    r = recipe.rollout
    noise = SeededNoise(seeds, len(seeds), 16, r.height, r.width, conditioning.text.device)
    first = r.frames - r.window
    call = CausalModel(student)
    noted = ExitRecorder(call, choices, recipe, first if gradient else None, noise)
    with torch.no_grad(), autocast_cache(True):
        memory = new_memory(student, conditioning, recipe)
        past = replace(rollout_settings(recipe, choices.schedule), fuse=True)
        for _ in rollout(call, conditioning, memory, noise, first, past):
            pass
        settings = rollout_settings(recipe, choices.schedule_to_exit)
        continue_rollout(noted, conditioning, memory, noise, r.window, settings, on_step=noted.on_step)
    return RolloutResult(noted.exits.x0(choices.exit_sigma), noted.exits, noise, call)
