"""Self-Forcing rollouts with gradient: the engine's loop and memory, with a wrapped model call.

The loop runs without gradient. At the exit step of each block the wrapper enables gradient, records the call's input
and output, and evaluates the semigroup branch against the memory of that block. The clip's x0 is computed from the
records, so the loop itself exists once, in `salt.rollout`.
Counterpart in Self Forcing: `SelfForcingTrainingPipeline.inference_with_trajectory`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.memory import KVMemory
from salt.model_input import FlowModel, ModelInput
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import NoiseSource
from salt.rollout import Step, rollout
from salt.schedule import NUM_TRAIN_TIMESTEPS, add_noise, flow_to_x0
from train.config.recipe import Recipe
from train.losses.semigroup import TimestepTriple, composed_endpoint, direct_endpoint, middle_point
from train.rollout.random_draws import UpdateDraws
from train.rollout.recipe_rollout import autocast_cache, clip_noise, flow_model, rollout_settings, run_rollout


@dataclass
class ExitRecord:
    """What the exit steps of one rollout computed, block by block; latents [B, C, F, H, W]."""

    inputs: list[Tensor] = field(default_factory=list)
    flows: list[Tensor] = field(default_factory=list)
    direct: list[Tensor] = field(default_factory=list)
    composed: list[Tensor] = field(default_factory=list)
    first_flow: Tensor | None = None
    """Flow of the clip's very first evaluation, exit or not."""

    def x0(self, sigma: float, first_sigma: float | None = None) -> Tensor:
        """The clip at the exit step, with gradient where it was enabled. first_sigma: of its first block."""
        inputs, flows = torch.cat(self.inputs, 2), torch.cat(self.flows, 2)
        if first_sigma is None or first_sigma == sigma:
            return flow_to_x0(inputs, flows, sigma)
        sigma_BF = inputs.new_full((inputs.shape[0], inputs.shape[2]), sigma)
        sigma_BF[:, : self.inputs[0].shape[2]] = first_sigma
        return flow_to_x0(inputs, flows, sigma_BF)

    def endpoints(self) -> tuple[Tensor, Tensor]:
        """Direct and composed endpoints of the semigroup branch, for the blocks that carry gradient."""
        return torch.cat(self.direct, 2), torch.cat(self.composed, 2)


class ExitRecorder:
    """A model callable that records exits.

    first_frame: latent frame from which the exits carry gradient; None: no exit does.
    """

    def __init__(
        self,
        model: FlowModel[Conditioning],
        draws: UpdateDraws,
        recipe: Recipe,
        first_frame: int | None,
        noise: NoiseSource,
    ) -> None:
        self.model, self.draws, self.recipe, self.first_frame = model, draws, recipe, first_frame
        self.noise = noise
        self.exits = ExitRecord()
        self.at_exit = False

    def on_step(self, step: Step) -> None:
        """Called by the loop before each model call: reading the timestep itself would synchronise with the device."""
        self.at_exit = step.kind == "denoise" and step.step + 1 == step.steps

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        flow = self._exit(inputs) if self.at_exit else self.model(inputs)
        if self.exits.first_flow is None:
            self.exits.first_flow = flow
        return flow

    def _exit(self, inputs: ModelInput[Conditioning]) -> Tensor:
        with_gradient = self.first_frame is not None and inputs.start_frame >= self.first_frame
        with torch.set_grad_enabled(with_gradient), autocast_cache(not with_gradient):
            flow = self.model(inputs)
        self.exits.inputs.append(inputs.x)
        self.exits.flows.append(flow)
        if with_gradient and self.draws.triple is not None:
            self._semigroup(self.draws.triple, inputs, flow)
        return flow.detach()

    def _semigroup(self, triple: TimestepTriple, inputs: ModelInput[Conditioning], flow: Tensor) -> None:
        """Both endpoints of this block; the first velocity of the composed one is detached (released recipe)."""
        loss, x = self.recipe.loss, inputs.x
        by_sampler = loss.semigroup_operator == "sampler"
        given = 1 if inputs.per_frame else 0  # a first frame that stays clean
        sigma_s, sigma_m = triple.start / NUM_TRAIN_TIMESTEPS, triple.middle / NUM_TRAIN_TIMESTEPS
        composed_learns = not loss.semigroup_stop_gradient
        with torch.set_grad_enabled(composed_learns), autocast_cache(not composed_learns):
            v_s = flow if composed_learns else flow.detach()
            if by_sampler:
                fresh = self.noise(inputs.start_frame, x.shape[2], -1)  # a draw that the rollout never makes
                x_m = add_noise(flow_to_x0(x, v_s, sigma_s), fresh, sigma_m)
            else:
                x_m = middle_point(x, v_s, triple)
            timestep = torch.full_like(inputs.timestep, triple.middle)
            if given:
                x_m = torch.cat([x[:, :, :given], x_m[:, :, given:]], dim=2)
                timestep[:, :given] = 0
            v_m = self.model(replace(inputs, x=x_m, timestep=timestep))
            # The sampler re-noises x0, so x0 is what its two paths are compared by.
            composed = flow_to_x0(x_m, v_m, sigma_m) if by_sampler else composed_endpoint(x_m, v_m, triple)
            composed = composed[:, :, given:]
        with torch.enable_grad():
            direct = flow_to_x0(x, flow, sigma_s) if by_sampler else direct_endpoint(x, flow, triple)
            direct = direct[:, :, given:]
        self.exits.direct.append(direct)
        self.exits.composed.append(composed)


@dataclass
class RolloutResult:
    """A finished rollout. x0 [B, C, F, H, W] has gradient if it was requested.

    model: the student's callable, with its cached cross-attention of the prompt. learned: frames at the end of x0 that
    carry loss (0: all).
    """

    x0: Tensor
    exits: ExitRecord
    noise: NoiseSource
    model: FlowModel[Conditioning]
    learned: int = 0


def rollout_with_grad(
    student: SaltTransformer3DModel,
    conditioning: Conditioning,
    recipe: Recipe,
    draws: UpdateDraws,
    seeds: list[int],
    *,
    gradient: bool,
    first: Tensor | None = None,
) -> RolloutResult:
    """One clip per seed, every block leaving at the drawn exit step (the first one at its own, where it has one); a
    bidirectional student's clip is one block.

    first: [B, C, 1, H, W], the picture's latent that a clip begins with, which has no gradient.
    """
    r, text = recipe.rollout, conditioning.text
    noise = clip_noise(student, recipe, seeds, text.device, text.dtype)
    first_frame = r.frames - (r.window or r.frames)
    model = flow_model(student, recipe)
    recorder = ExitRecorder(model, draws, recipe, first_frame if gradient else None, noise)
    settings = rollout_settings(recipe, draws.schedule_to_exit)
    run_rollout(recorder, student, conditioning, recipe, settings, noise, first=first, on_step=recorder.on_step)
    x0 = recorder.exits.x0(draws.exit_sigma, draws.first_exit_sigma)
    if first is None:
        return RolloutResult(x0[:, :, first_frame:], recorder.exits, noise, model)
    x0 = torch.cat([first, x0[:, :, 1:] if r.gives_first_frame else x0], dim=2)
    return RolloutResult(x0, recorder.exits, noise, model, r.frames - 1 if r.gives_first_frame else 0)


def continue_with_grad(
    student: SaltTransformer3DModel,
    conditioning: Conditioning,
    memory: KVMemory,
    frames: int,
    recipe: Recipe,
    draws: UpdateDraws,
    seeds: list[int],
    *,
    gradient: bool,
) -> RolloutResult:
    """The next `frames` latent frames of clips that `memory` holds, which holds them as well afterwards."""
    text = conditioning.text
    noise = clip_noise(student, recipe, seeds, text.device, text.dtype)
    model = flow_model(student, recipe)
    recorder = ExitRecorder(model, draws, recipe, memory.next_frame if gradient else None, noise)
    settings = rollout_settings(recipe, draws.schedule_to_exit)
    with torch.no_grad(), autocast_cache(True):
        for _ in rollout(recorder, conditioning, memory, noise, frames, settings, on_step=recorder.on_step):
            pass
    return RolloutResult(recorder.exits.x0(draws.exit_sigma), recorder.exits, noise, model, frames)
