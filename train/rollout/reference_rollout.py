"""Alignment references: the student's clip once more, on the next denser step list and without gradient.

Source: Salt (arXiv 2604.03118, section 3.3) and its release ("noise aligned" references).
"""

from __future__ import annotations

from torch import Tensor

from salt.conditioning import Conditioning
from salt.model_input import FlowModel, ModelInput
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import NoiseSource
from salt.schedule import Schedule, Stepping
from train.config.recipe import Recipe
from train.rollout.gradient_rollout import RolloutResult
from train.rollout.random_draws import UpdateDraws
from train.rollout.recipe_rollout import clip_noise, rollout_settings, run_rollout


class AlignedNoise:
    """Noise of a denser step list: the student's noise at steps that both lists have, `own` at all others.

    steps, dense: the two lists, before warping.
    """

    def __init__(
        self, student: NoiseSource, own: NoiseSource, steps: tuple[float, ...], dense: tuple[float, ...]
    ) -> None:
        self.student, self.own = student, own
        self.shared = {dense.index(s): steps.index(s) for s in steps if s in dense}

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.student.seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        if draw in self.shared:
            return self.student(start, frames, self.shared[draw])
        return self.own(start, frames, draw)


class FirstFlowKnown:
    """A model callable whose first result has been computed already."""

    def __init__(self, model: FlowModel[Conditioning], first_flow: Tensor | None) -> None:
        self.model, self.first_flow = model, first_flow

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        if self.first_flow is None:
            return self.model(inputs)
        flow, self.first_flow = self.first_flow, None
        return flow


def reference_steps(
    steps: tuple[float, ...], dense: tuple[float, ...], exit_step: float
) -> tuple[tuple[float, ...], tuple[Stepping, ...]]:
    """The denser steps down to the student's exit, and the transitions: SDE into shared steps, Euler into others."""
    reached = tuple(s for s in dense if s >= exit_step)
    transitions: tuple[Stepping, ...] = tuple("sde" if s in steps else "ode" for s in reached[1:])
    return reached, transitions


def rollout_reference(
    student: SaltTransformer3DModel,
    conditioning: Conditioning,
    recipe: Recipe,
    draws: UpdateDraws,
    result: RolloutResult,
    seeds: list[int],
    first: Tensor | None = None,
) -> Tensor:
    """The reference clip [B, C, F, H, W] of a rollout `result`: next denser list, own memory, same initial noise.

    It exits at the student's exit timestep. Without `noise_aligned` it re-noises with its own noise (of `seeds`)
    everywhere. It reuses what it has in common with the student's rollout: the prompt's cross-attention keys and
    values, and the first evaluation, which has the same noise and an empty memory, unless a picture's latent `first`
    is written to it before. Its memory is of its own outputs.
    """
    r, text = recipe.rollout, conditioning.text
    dense = recipe.schedule(2 * draws.schedule.nfe)
    own = clip_noise(student, recipe, seeds, text.device, text.dtype)
    shared = draws.schedule.steps
    steps, stepping = reference_steps(shared, dense.steps, shared[draws.exit_index])
    if not recipe.loss.noise_aligned:
        shared, stepping = shared[:1], "sde"
    noise = AlignedNoise(result.noise, own, shared, dense.steps)
    settings = rollout_settings(recipe, Schedule(steps, r.shift), stepping)
    model = FirstFlowKnown(result.model, result.exits.first_flow if first is None else None)
    clip = run_rollout(model, student, conditioning, recipe, settings, noise, first=first)
    return clip[:, :, r.frames - (r.window or r.frames) :]
