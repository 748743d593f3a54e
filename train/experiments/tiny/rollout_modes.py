"""The three kinds of rollout that the adversarial stage takes turns at: whole clips, first blocks, late windows.

Whole clips carry all of Salt's losses. Most clips that fail are wrong in their first block, and later evaluations do
not repair what the first one began: first blocks have no past and are short enough to carry gradient through every
evaluation, many in a batch. In long clips objects get lost, mostly where they cross the border: late windows are the
last frames of a clip that the student generated beyond what its memory holds, compared with late frames of real clips
(as in Self-Forcing++, arXiv 2510.02283, and LongLive's streaming long tuning, arXiv 2509.22622).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.model_input import ModelInput
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import SeededNoise
from salt.sampling import sample_bidirectional
from train.config.loader import load_recipe
from train.config.model_configs import WAN21_CHANNELS
from train.config.recipe import Recipe, Rollouts
from train.rollout.block_causal import ClipModel
from train.rollout.gradient_rollout import ExitRecord, RolloutResult, rollout_with_grad
from train.rollout.late_window import rollout_window
from train.rollout.random_draws import UpdateDraws
from train.rollout.recipe_rollout import rollout_settings

FIRST_BLOCKS_PER_BATCH = 32  # costs about as much as 8 clips of 12 latent frames
LONG_CLIP_WINDOWS = 3  # length of a long clip, in windows
FIRST_BLOCK_WEIGHT = 2.0  # of a frame in the first block, where most failures are; 1 in later blocks


class RolloutFunction(Protocol):
    """One clip per seed, as `rollout_with_grad`."""

    def __call__(
        self, student: SaltTransformer3DModel, conditioning: Conditioning, recipe: Recipe, draws: UpdateDraws,
        seeds: list[int], *, gradient: bool,
    ) -> RolloutResult: ...  # fmt: skip


@dataclass
class ClipPairs:
    """Student clips and real ones of the same scenes: fake, real [B, 16, F, 8, 8], scene numbers [B]."""

    fake: Tensor
    real: Tensor
    scenes: Tensor

    def __add__(self, other: ClipPairs) -> ClipPairs:
        both = ((self.fake, other.fake), (self.real, other.real), (self.scenes, other.scenes))
        return ClipPairs(*(torch.cat(two) for two in both))


@dataclass
class RolloutMode:
    """One kind of rollout.

    weight_F [F]: of each frame in the adversarial losses, 1 in all. scored_F [F]: 1 in frames that take DMD's gradient,
    0 elsewhere. late: real clips are cut after their first frame. replay: the newest pairs, for later updates.
    """

    recipe: Recipe
    rollout: RolloutFunction
    weight_F: Tensor
    scored_F: Tensor
    late: bool = False
    replay: list[ClipPairs] = field(default_factory=list)

    def draw_replay(self, recent: int, generator: torch.Generator) -> ClipPairs | None:
        """One of the `recent` newest pairs before this update, or None where there are none yet."""
        newest = self.replay[-recent:]
        return newest[int(torch.randint(len(newest), (), generator=generator))] if newest else None


def whole_clip_recipe(teacher: str, seed: int, frames: int, shift: float) -> Recipe:
    """Salt's losses on the Shapes world, as the study's arm `all`, with more rollouts at the two low step counts."""
    return load_recipe(
        "tiny_salt",
        [
            f"models.teacher={teacher}", f"rollout.frames={frames}", f"rollout.shift={shift}",
            "rollout.share={8: 0.1, 4: 0.4, 2: 0.5}", "loss.align_start=0", "optimisation.batch=8",
            "optimisation.micro_batch=8", "optimisation.lr=2e-5", "optimisation.critic_lr=2e-4",
            "optimisation.precision=bf16", f"run.seed={seed}",
        ],
    )  # fmt: skip


def _dmd_recipe(whole: Recipe, rollouts: Rollouts, seed_offset: int) -> Recipe:
    """The recipe of another mode: DMD alone, with its own random draws."""
    loss = replace(whole.loss, semigroup=0.0, align="none")
    return replace(whole, rollout=rollouts, loss=loss, run=replace(whole.run, seed=whole.run.seed + seed_offset))


def rollout_modes(
    whole: Recipe, first_block_model: ClipModel, device: str
) -> tuple[RolloutMode, RolloutMode, RolloutMode]:
    """Whole clips, first blocks, late windows, in turn order. first_block_model: the student, called on whole clips."""
    frames, block = whole.rollout.frames, whole.rollout.frames_per_block
    weight_F = torch.ones(frames, device=device)
    weight_F[:block] = FIRST_BLOCK_WEIGHT
    block_F, even_F = torch.ones(block, device=device), torch.ones(frames, device=device)
    # The teacher scores the first frames of its input as the start of a clip, which those of a late window are not.
    late_scored_F = even_F.clone()
    late_scored_F[:block] = 0
    first = _dmd_recipe(whole, replace(whole.rollout, frames=block, share={4: 0.2, 2: 0.8}), 1000)
    batch = {"batch": FIRST_BLOCKS_PER_BATCH, "micro_batch": FIRST_BLOCKS_PER_BATCH}
    first = replace(first, optimisation=replace(first.optimisation, **batch))
    # With the memory of the shipped student's spec.
    long_rollouts = replace(
        whole.rollout, frames=LONG_CLIP_WINDOWS * frames, window=frames, memory="relative:3,window:12"
    )
    late = _dmd_recipe(whole, long_rollouts, 2000)

    first_blocks = partial(rollout_first_block, model=first_block_model)
    late_windows = partial(rollout_window, start=late.rollout.frames - frames, masked=0)
    return (
        RolloutMode(whole, rollout_with_grad, weight_F / weight_F.sum(), even_F),
        RolloutMode(first, first_blocks, block_F / block, block_F),
        RolloutMode(late, late_windows, even_F / frames, late_scored_F, late=True),
    )


def rollout_first_block(
    student: ClipModel, conditioning: Conditioning, recipe: Recipe, draws: UpdateDraws, seeds: list[int], *,
    gradient: bool, model: ClipModel | None = None,
) -> RolloutResult:  # fmt: skip
    """First blocks, with gradient through all evaluations of the schedule.

    model: the student compiled for whole clips (a first block needs no memory); `student` itself by default.
    """
    call = model or student
    r, text = recipe.rollout, conditioning.text
    noise = SeededNoise(seeds, len(seeds), WAN21_CHANNELS, r.height, r.width, text.device)

    def flow(inputs: ModelInput[Conditioning], /) -> Tensor:
        return call(inputs.x, inputs.timestep, inputs.conditioning.text, return_dict=False)[0].float()

    with torch.set_grad_enabled(gradient):
        x0 = sample_bidirectional(flow, conditioning, noise, r.frames, rollout_settings(recipe, draws.schedule))
    return RolloutResult(x0, ExitRecord(), noise, flow)
