"""Rollouts that carry gradient: the engine's own loop and memory, with the model call wrapped.

The loop runs without gradient. At the exit step of each block the wrapped call switches gradient on, notes what went
in and what came out, and evaluates the semigroup branch against the very memory of that block. x0 of the clip is then
built from these notes. Nothing of the loop exists twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.memory import KVMemory
from salt.model_input import FlowModel, ModelInput
from salt.models.transformer_salt import CausalModel
from salt.noise import NoiseSource, SeededNoise
from salt.rollout import RolloutSettings, Step, Stepping, rollout
from salt.sampling import BidirectionalModel, sample_bidirectional
from salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule, add_noise, flow_to_x0
from train.config.recipe import Recipe
from train.losses.semigroup import TimestepTriple, composed_endpoint, direct_endpoint, middle_point
from train.rollout.random_draws import UpdateDraws


@dataclass
class Exits:
    """Notes of one rollout, block by block; latents [B, C, F, H, W]."""

    inputs: list[Tensor] = field(default_factory=list)
    flows: list[Tensor] = field(default_factory=list)
    direct: list[Tensor] = field(default_factory=list)
    composed: list[Tensor] = field(default_factory=list)
    opening: Tensor | None = None
    """What the clip's very first evaluation said, exit or not."""

    def x0(self, sigma: float) -> Tensor:
        """The clip as it left the exit step, with gradient where it was on."""
        return flow_to_x0(torch.cat(self.inputs, 2), torch.cat(self.flows, 2), sigma)

    def endpoints(self) -> tuple[Tensor, Tensor]:
        """Direct and composed endpoints of the semigroup branch, for the blocks that carry gradient."""
        return torch.cat(self.direct, 2), torch.cat(self.composed, 2)


@contextmanager
def cast_weights_kept(kept: bool) -> Iterator[None]:
    """Whether autocast keeps the weights it casts from one forward to the next, until the run's wrapper is left.

    Without gradient it may; what it kept then would cut the gradient of a forward that wants one.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(kept)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class ExitRecorder:
    """The student's call, noting exits. `first` is the latent frame from which gradient is wanted; None: nowhere."""

    def __init__(
        self,
        call: FlowModel[Conditioning],
        choices: UpdateDraws,
        recipe: Recipe,
        first: int | None,
        renoise: NoiseSource,
    ) -> None:
        self.call, self.choices, self.recipe, self.first = call, choices, recipe, first
        self.renoise = renoise
        self.exits = Exits()
        self.at_exit = False

    def on_step(self, step: Step) -> None:
        """Told by the loop which call comes next: asking the timesteps would wait for the device."""
        self.at_exit = step.kind == "denoise" and step.step + 1 == step.steps

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        flow = self._exit(inputs) if self.at_exit else self.call(inputs)
        if self.exits.opening is None:
            self.exits.opening = flow
        return flow

    def _exit(self, inputs: ModelInput[Conditioning]) -> Tensor:
        with_gradient = self.first is not None and inputs.start_frame >= self.first
        with torch.set_grad_enabled(with_gradient), cast_weights_kept(not with_gradient):
            flow = self.call(inputs)
        self.exits.inputs.append(inputs.x)
        self.exits.flows.append(flow)
        if with_gradient and self.choices.triple is not None:
            self._semigroup(self.choices.triple, inputs, flow)
        return flow.detach()

    def _semigroup(self, triple: TimestepTriple, inputs: ModelInput[Conditioning], flow: Tensor) -> None:
        """Both endpoints of this block; the first velocity of the composed one is detached (released recipe)."""
        loss, x = self.recipe.loss, inputs.x
        by_sampler = loss.semigroup_operator == "sampler"
        sigma_s, sigma_m = triple.start / NUM_TRAIN_TIMESTEPS, triple.middle / NUM_TRAIN_TIMESTEPS
        graded = not loss.semigroup_stop_gradient
        with torch.set_grad_enabled(graded), cast_weights_kept(not graded):
            v_s = flow.detach() if loss.semigroup_stop_gradient else flow
            if by_sampler:
                x_m = add_noise(flow_to_x0(x, v_s, sigma_s), self.renoise(inputs.start_frame, x.shape[2], -1), sigma_m)
            else:
                x_m = middle_point(x, v_s, triple)
            v_m = self.call(replace(inputs, x=x_m, timestep=torch.full_like(inputs.timestep, triple.middle)))
            # The sampler re-noises x0, so what two of its paths must share is x0 itself.
            composed = flow_to_x0(x_m, v_m, sigma_m) if by_sampler else composed_endpoint(x_m, v_m, triple)
        with torch.enable_grad():
            direct = flow_to_x0(x, flow, sigma_s) if by_sampler else direct_endpoint(x, flow, triple)
        self.exits.direct.append(direct)
        self.exits.composed.append(composed)


@dataclass
class RolloutResult:
    """A finished rollout. x0 [B, C, F, H, W] covers the frames that count; with gradient if it was asked for.

    call: the student's, with what it has made of the prompt.
    """

    x0: Tensor
    exits: Exits
    noise: NoiseSource
    call: FlowModel[Conditioning]


def rollout_with_grad(
    student: Any, conditioning: Conditioning, recipe: Recipe, choices: UpdateDraws, seeds: list[int], gradient: bool
) -> RolloutResult:
    """One clip per seed, exiting every block at the drawn step; a bidirectional student makes it in one piece."""
    r, device = recipe.rollout, conditioning.text.device
    channels = student.config.out_channels
    noise = SeededNoise(seeds, len(seeds), channels, r.height, r.width, device, conditioning.text.dtype)
    first = r.frames - (r.window or r.frames)
    call = BidirectionalModel(student) if r.kind == "bidirectional" else CausalModel(student)
    noted = ExitRecorder(call, choices, recipe, first if gradient else None, noise)
    play(noted, student, conditioning, recipe, settings_of(recipe, choices.to_exit), noise, on_step=noted.on_step)
    return RolloutResult(noted.exits.x0(choices.exit_sigma)[:, :, first:], noted.exits, noise, call)


def settings_of(
    recipe: Recipe, schedule: Schedule, stepping: Stepping | tuple[Stepping, ...] = "sde"
) -> RolloutSettings:
    """The engine's settings of a recipe's rollout."""
    r = recipe.rollout
    return RolloutSettings(schedule, stepping, r.frames_per_block, r.independent_first_frame)


@torch.no_grad()
@cast_weights_kept(True)
def play(
    call: FlowModel[Conditioning],
    student: Any,
    conditioning: Conditioning,
    recipe: Recipe,
    settings: RolloutSettings,
    noise: NoiseSource,
    negative: Conditioning | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """A clip [B, C, F, H, W] of the recipe's length, kind and memory; `call` is the student as the engine calls it."""
    r = recipe.rollout
    if r.kind == "bidirectional":
        return sample_bidirectional(call, conditioning, noise, r.frames, settings, negative=negative, on_step=on_step)
    memory = new_memory(student, conditioning, recipe)
    return play_on(call, conditioning, memory, noise, r.frames, settings, negative=negative, on_step=on_step)


def play_on(
    call: FlowModel[Conditioning],
    conditioning: Conditioning,
    memory: KVMemory,
    noise: NoiseSource,
    frames: int,
    settings: RolloutSettings,
    **options: Any,
) -> Tensor:
    """The last `frames` latent frames [B, C, frames, H, W] of a clip, past what `memory` has; options: `rollout`'s."""
    clip = []
    for block in rollout(call, conditioning, memory, noise, frames, settings, **options):
        clip.append(block.latents)
        if block.index + 1 == block.count:
            break  # the last block's context pass would write a memory that nobody reads
    return torch.cat(clip, dim=2)


def new_memory(student: Any, conditioning: Conditioning, recipe: Recipe) -> KVMemory:
    """An empty memory for a clip of the recipe's length."""
    r = recipe.rollout
    geometry = student.memory_geometry(conditioning.text.shape[0], r.height, r.width)
    # The model computes in the precision's dtype whatever its weights are kept in.
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else next(student.parameters()).dtype
    return KVMemory(recipe.policy, geometry, dtype, conditioning.text.device, r.frames)


class AlignedNoise:
    """Noise of a denser reference list in terms of the student's: the same at steps that both lists have.

    Source: Salt's noise-aligned references. own: for steps that only the reference has, where it re-noises at all.
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


class Begun:
    """A model call whose first answer is known."""

    def __init__(self, call: FlowModel[Conditioning], first: Tensor | None) -> None:
        self.call, self.first = call, first

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        if self.first is None:
            return self.call(inputs)
        flow, self.first = self.first, None
        return flow


def reference_steps(steps: tuple[float, ...], dense: tuple[float, ...], exit_step: float) -> tuple[tuple, tuple]:
    """The denser steps up to the student's exit, and how to step: SDE into steps both lists have, Euler between."""
    reached = tuple(s for s in dense if s >= exit_step)
    into = tuple("sde" if s in steps else "ode" for s in reached[1:])
    return reached, into


def rollout_reference(
    student: Any,
    conditioning: Conditioning,
    recipe: Recipe,
    choices: UpdateDraws,
    rolled: RolloutResult,
    seeds: list[int],
) -> Tensor:
    """The alignment's reference clip [B, C, F, H, W]: the next denser list, its own memory, the student's first noise.

    It exits at the student's exit timestep. Without `noise_aligned` it re-noises with noise of its own throughout.
    What it has in common with the student's rollout it takes from there: the prompt's keys and values, and the first
    evaluation, of the same noise under an empty memory. From then on its memory holds a past of its own.
    """
    r = recipe.rollout
    dense = recipe.schedule(2 * choices.schedule.nfe)
    channels, like = student.config.out_channels, conditioning.text
    own = SeededNoise(seeds, len(seeds), channels, r.height, r.width, like.device, like.dtype)
    exit_step = choices.schedule.steps[choices.exit_index]
    steps, stepping = reference_steps(choices.schedule.steps, dense.steps, exit_step)
    shared = choices.schedule.steps
    if not recipe.loss.noise_aligned:
        shared, stepping = shared[:1], "sde"
    noise = AlignedNoise(rolled.noise, own, shared, dense.steps)
    settings = settings_of(recipe, Schedule(steps, r.shift), stepping)
    clip = play(Begun(rolled.call, rolled.exits.opening), student, conditioning, recipe, settings, noise)
    return clip[:, :, r.frames - (r.window or r.frames) :]
