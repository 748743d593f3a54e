"""The baseline: the published rollout and training loops, without our optimisations.

Each layer's cache is cloned in every forward and written in denoising steps too (`cloning`); the context pass is a
separate forward, also after the last block; the prompt's embedding, keys and values are computed in every forward;
rotary tables in complex128 are assembled at every call, in teacher and critic too. Schedule, noise, random draws,
losses and optimizers are ours, so that both loops give the same latents and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.cloning import CloningMemory, PlainBidirectional, PlainRotary
from salt.block_plan import RolloutSettings, block_lengths
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import NoiseSource, SeededNoise
from salt.schedule import NUM_TRAIN_TIMESTEPS, add_noise, flow_to_x0
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.methods.base import Learner
from train.methods.learning_rate import rate_factor
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.sc_dmd_losses import critic_term, dmd_term
from train.rollout.random_draws import UpdateDraws, draw_update
from train.rollout.recipe_rollout import rollout_settings

PlainLoss = Callable[[SCDMDTrainer, Batch, UpdateDraws, int], tuple[Tensor, dict[str, float]]]


def plain_memory(
    student: SaltTransformer3DModel, policy: MemoryPolicy, batch: int, height: int, width: int, frames: int,
    dtype: torch.dtype | None = None,
) -> CloningMemory:  # fmt: skip
    """The cache for a clip of `frames` latent frames of height x width (latent): full, or sink + window."""
    geometry = student.memory_geometry(batch, height, width)
    return CloningMemory(policy, geometry, dtype or student.dtype, student.device, frames)


def plain_rollout(
    student: SaltTransformer3DModel,
    conditioning: Conditioning,
    memory: CloningMemory,
    noise: NoiseSource,
    frames: int,
    settings: RolloutSettings,
    gradient: bool = False,
) -> Iterator[Tensor]:
    """Yield the blocks [B, C, F, H, W] of a clip: SDE steps, without guidance.

    gradient: let gradients flow through the last step of each block.
    """
    steps = list(enumerate(settings.schedule.sigmas))

    def evaluate(x: Tensor, sigma: float, writes: bool, with_grad: bool) -> Tensor:
        t = x.new_full((x.shape[0], x.shape[2]), sigma * NUM_TRAIN_TIMESTEPS)
        context = memory.open(write=x.shape[2]) if writes else memory.open(read=x.shape[2])
        with torch.set_grad_enabled(with_grad):
            flow = student(x, t, conditioning.text, return_dict=False, attention_context=context)[0]
        memory.commit(context)
        return flow

    for length in block_lengths(0, frames, settings):
        start = memory.next_frame
        x = x0 = noise(start, length, 0)
        for i, sigma in steps:
            last = i + 1 == len(steps)
            flow = evaluate(x, sigma, False, gradient and last)
            with torch.set_grad_enabled(gradient and last):
                x0 = flow_to_x0(x, flow, sigma)
            if not last:
                x = add_noise(x0, noise(start, length, i + 1), settings.schedule.sigmas[i + 1])
        yield x0
        evaluate(x0.detach(), 0.0, True, False)


class PlainModel:
    """A teacher or critic as the losses call it, with the published rotary embedding."""

    def __init__(self, call: Callable[..., Any], model: SaltTransformer3DModel) -> None:
        self.call, self.model, self.block_causal = call, model, model.block_causal
        self.rotary = PlainRotary(model.config.attention_head_dim, model.device)

    def __call__(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        geometry = self.model.memory_geometry(x.shape[0], *x.shape[3:])
        context = PlainBidirectional(self.rotary, x.shape[2], geometry.height, geometry.width)
        return self.call(x, *arguments, attention_context=context, **options)


def plain_clip(
    student: SaltTransformer3DModel,
    batch: Batch,
    recipe: Recipe,
    choices: UpdateDraws,
    seeds: list[int],
    gradient: bool,
) -> Tensor:
    """A clip [B, C, T, H, W] of the recipe, equal to that of `train.rollout.gradient_rollout.rollout_with_grad`."""
    r, text = recipe.rollout, batch.conditioning.text
    if recipe.policy.kind != "full" or r.window or r.kind != "autoregressive":
        raise ValueError(f"rollout: found {r}, expected full memory (this cache does not evict in the backward pass)")
    channels = student.config.out_channels
    noise = SeededNoise(seeds, len(seeds), channels, r.height, r.width, text.device, text.dtype)
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else student.dtype
    memory = plain_memory(student, recipe.policy, len(seeds), r.height, r.width, r.frames, dtype)
    settings = rollout_settings(recipe, choices.schedule_to_exit)
    return torch.cat(list(plain_rollout(student, batch.conditioning, memory, noise, r.frames, settings, gradient)), 2)


def plain_critic_loss(
    trainer: SCDMDTrainer, batch: Batch, draws: UpdateDraws, step: int
) -> tuple[Tensor, dict[str, float]]:
    """The critic's loss of `SCDMDTrainer.critic_loss`, computed by the plain loop."""
    seeds = batch.seeds(trainer.recipe, step, "critic")
    with torch.no_grad():
        x0 = trainer.student.model(plain_clip, batch, trainer.recipe, draws, seeds, False)
    loss = trainer.critic.model(_plain_critic_term, x0, batch, trainer.recipe, step)
    return loss, {"critic": loss.item()}


def _plain_critic_term(critic: SaltTransformer3DModel, x0: Tensor, batch: Batch, recipe: Recipe, step: int) -> Tensor:
    return critic_term(PlainModel(critic, critic), x0, batch, recipe, step)


def plain_generator_loss(
    trainer: SCDMDTrainer, batch: Batch, draws: UpdateDraws, update: int
) -> tuple[Tensor, dict[str, float]]:
    """The student's loss of `SCDMDTrainer.generator_loss`, computed by the plain loop: DMD only."""
    loss = trainer.recipe.loss
    if loss.semigroup or loss.align != "none" or loss.score != "bidirectional":
        raise ValueError(f"loss: found {loss}, expected DMD only, which the plain loop has")
    dmd = trainer.student.model(_plain_dmd, trainer, batch, draws, update)
    return dmd, {"dmd": dmd.item()}


def _plain_dmd(
    student: SaltTransformer3DModel, trainer: SCDMDTrainer, batch: Batch, draws: UpdateDraws, update: int
) -> Tensor:
    recipe = trainer.recipe
    x0 = plain_clip(student, batch, recipe, draws, batch.seeds(recipe, update, "generator"), True)
    critic, teacher = (PlainModel(s, s.wrapped.model) for s in (trainer.critic_score, trainer.teacher))
    return dmd_term(critic, teacher, x0, batch, recipe, draws, update)


def plain_update(trainer: SCDMDTrainer, update: int) -> dict[str, float]:
    """One generator update after its critic updates, like `SCDMDTrainer.update`."""
    opt, losses, norms = trainer.recipe.optimisation, [], []
    for i in range(opt.critic_per_generator):
        step = update * opt.critic_per_generator + i
        losses.append(_plain_gradient(trainer, trainer.critic, plain_critic_loss, step, "critic")["critic"])
        norms.append(trainer.critic.step(opt.clip, rate_factor(opt, update)))
    values = {"critic": losses[-1], "critic_mean": fmean(losses), "critic_norm": max(norms)}
    values |= _plain_gradient(trainer, trainer.student, plain_generator_loss, update, "generator")
    return values | {"norm": trainer.step_student(update)}


def _plain_gradient(
    trainer: SCDMDTrainer, learner: Learner, plain_loss: PlainLoss, update: int, role: str
) -> dict[str, float]:
    """Accumulate a learner's gradients over its micro-batches; returns the mean logged values."""
    draws = draw_update(trainer.recipe, update, role)
    values = []
    for batch in trainer.micro_batches(learner, update, role):
        loss, parts = plain_loss(trainer, batch, draws, update)
        (loss / trainer.accumulation_steps).backward()
        values.append(parts)
    return trainer.mean_values(values)
