"""What the generator and the critic minimise, put together from the pure losses.

Both take models as callables with the student's signature, so that a wrapped (FSDP) model serves as well as a bare one.
Latents are [B, C, F, H, W]; every loss is a mean over the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.schedule import NUM_TRAIN_TIMESTEPS, add_noise, flow_to_x0
from train.config.recipe import Recipe
from train.losses import (
    critic_flow_loss,
    dmd_gradient,
    dmd_loss,
    guided_x0,
    linear_mmd,
    rbf_mmd,
    semigroup_loss,
    time_weight,
    token_relation_distance,
)
from train.rollout.block_causal import blocks_of, causal_features, causal_flow
from train.rollout.gradient_rollout import RolloutResult, rollout_reference, rollout_with_grad
from train.rollout.random_draws import ALIGN_STEPS, UpdateDraws, noise_like, number, score_sigmas


@dataclass(frozen=True)
class Batch:
    """A micro-batch: which clips of the global batch these are, and what they are conditioned on."""

    samples: range
    conditioning: Conditioning
    negative: Conditioning

    def seeds(self, recipe: Recipe, update: int, role: str) -> list[int]:
        return [number(recipe.run.seed, role, update, i, "rollout") for i in self.samples]


@dataclass
class Models:
    """The four callables of a run. features(x, t, text, after_block, ...) is the teacher's."""

    student: Any
    critic: Any
    teacher: Any


def seen_by_scores(policy: MemoryPolicy) -> MemoryPolicy:
    """What a causal score sees of a clip's past: what the student's memory keeps, or where positions are re-assigned,
    which one forward over a whole clip cannot, all of it."""
    return MemoryPolicy() if policy.relative or policy.kind == "cyclic" else policy


def score(model: Any, x: Tensor, sigma: Tensor, conditioning: Conditioning, recipe: Recipe, clean: Tensor) -> Tensor:
    """Flow of a real or fake score at sigma [B], bidirectional, or under the student's block-causal mask.

    clean: the clip itself, which the causal score sees as the past of every block (Salt++, "AR-AR").
    """
    if recipe.loss.score == "causal":
        blocks, sigma_BF = blocks_of(recipe.rollout, x.shape[2]), sigma[:, None].expand(-1, x.shape[2])
        return causal_flow(model, x, sigma_BF, conditioning, blocks, seen_by_scores(recipe.policy), clean)
    if conditioning.channels is not None:
        x = torch.cat([x, conditioning.channels[:, :, : x.shape[2]]], dim=1)
    t = sigma * NUM_TRAIN_TIMESTEPS
    return model(x, t, conditioning.text, conditioning.image, return_dict=False)[0]


def generator_loss(
    models: Models, batch: Batch, recipe: Recipe, choices: UpdateDraws, update: int
) -> tuple[Tensor, dict[str, float]]:
    """L_DMD + weight L_SC 1[K = 8] + weight L_align 1[K low]: the loss to minimise, and its parts for the log."""
    seeds = batch.seeds(recipe, update, "generator")
    rolled = rollout_with_grad(models.student, batch.conditioning, recipe, choices, seeds, gradient=True)
    loss = dmd_term(models, rolled.x0, batch, recipe, choices, update)
    parts = {"dmd": loss.item()}
    beside, more = consistency_loss(models, rolled, batch, recipe, choices, update)
    return loss + beside, parts | more


def consistency_loss(
    models: Models, rolled: RolloutResult, batch: Batch, recipe: Recipe, choices: UpdateDraws, update: int
) -> tuple[Tensor, dict[str, float]]:
    """What Salt sets beside DMD, of a rollout that carries gradient: weight L_SC 1[K = 8] + weight L_align 1[K low]."""
    loss, parts = rolled.x0.new_zeros(()), {}
    if rolled.exits.direct:
        weight = time_weight(choices.triple.start) if choices.triple and recipe.loss.semigroup_time_weight else 1.0
        defect = semigroup_loss(*rolled.exits.endpoints(), weight, recipe.loss.semigroup_stop_gradient)
        loss = loss + recipe.loss.semigroup * defect
        parts |= {"semigroup": defect.item(), "semigroup_weight": recipe.loss.semigroup * weight}
    if aligns(recipe, choices, update):
        alignment = align_term(models, rolled, batch, recipe, choices, update)
        loss = loss + recipe.loss.align_weight * alignment
        parts["align"] = alignment.item()
    return loss, parts


def dmd_term(models: Models, x0: Tensor, batch: Batch, recipe: Recipe, choices: UpdateDraws, update: int) -> Tensor:
    """L_DMD of a clip x0 with gradient: real score from the guided teacher, fake score from the critic."""
    sigma = score_sigmas(recipe, update, batch.samples, "generator").to(x0.device)
    noise = noise_like(tuple(x0.shape[1:]), recipe, update, batch.samples, "generator").to(x0.device)
    with torch.no_grad():
        clean = x0.detach()
        x_t = add_noise(clean, noise, sigma)

        def estimate(model: Any, conditioning: Conditioning) -> Tensor:
            return flow_to_x0(x_t, score(model, x_t, sigma, conditioning, recipe, clean).float(), sigma)

        fake = estimate(models.critic, batch.conditioning)
        real = estimate(models.teacher, batch.conditioning)
        if choices.guidance:
            real = guided_x0(real, estimate(models.teacher, batch.negative), choices.guidance)
        gradient = dmd_gradient(clean, real, fake)
    return dmd_loss(x0, gradient).to(x0.dtype)


def aligns(recipe: Recipe, choices: UpdateDraws, update: int) -> bool:
    """Whether this update carries the alignment loss: by recipe, step count, exit and start."""
    loss, nfe = recipe.loss, choices.schedule.nfe
    if loss.align == "none" or update < loss.align_start:
        return False
    if loss.align == "release":
        return nfe == 2 and choices.exit_index != 0
    return nfe in (2, 4)


def align_term(
    models: Models, rolled: RolloutResult, batch: Batch, recipe: Recipe, choices: UpdateDraws, update: int
) -> Tensor:
    """Distance of teacher features between the student's clip and a denser reference, noised alike.

    The gradient flows through the teacher to the student's clip; the reference has none.
    """
    if choices.exit_index == 0:
        # One step from the same noise on either list: the reference is the clip itself, at no distance, no gradient.
        return rolled.x0.new_zeros(())
    seeds = batch.seeds(recipe, update, "reference")
    reference = rollout_reference(models.student, batch.conditioning, recipe, choices, rolled, seeds)
    sigma = score_sigmas(recipe, update, batch.samples, "align", ALIGN_STEPS).to(reference.device)
    noise = noise_like(tuple(reference.shape[1:]), recipe, update, batch.samples, "align").to(reference.device)

    def features(clip: Tensor) -> Tensor:
        x = add_noise(clip, noise, sigma)
        c, block = batch.conditioning, recipe.loss.align_block
        if recipe.loss.score == "causal":
            blocks, sigma_BF = blocks_of(recipe.rollout, x.shape[2]), sigma[:, None].expand(-1, x.shape[2])
            policy = seen_by_scores(recipe.policy)
            return causal_features(models.teacher, x, sigma_BF, c, blocks, policy, clip, block).float()
        if c.channels is not None:
            x = torch.cat([x, c.channels[:, :, : x.shape[2]]], dim=1)
        t = sigma * NUM_TRAIN_TIMESTEPS
        return models.teacher.features(x, t, c.text, block, encoder_hidden_states_image=c.image).float()

    with torch.no_grad():
        wanted = features(reference)
    made = features(rolled.x0)
    if recipe.loss.align_distance == "trd":
        return token_relation_distance(made, wanted, reference.shape[2], recipe.loss.align_margin)
    return (linear_mmd if recipe.loss.align_distance == "mmd" else rbf_mmd)(made, wanted)


@torch.no_grad()
def critic_clip(student: Any, batch: Batch, recipe: Recipe, choices: UpdateDraws, update: int) -> Tensor:
    """The clips the critic learns from: what the student makes now. `update` counts critic updates."""
    seeds = batch.seeds(recipe, update, "critic")
    return rollout_with_grad(student, batch.conditioning, recipe, choices, seeds, gradient=False).x0


def critic_loss(critic: Any, x0: Tensor, batch: Batch, recipe: Recipe, update: int) -> Tensor:
    """Flow matching of the critic on student clips x0."""
    sigma = score_sigmas(recipe, update, batch.samples, "critic").to(x0.device)
    noise = noise_like(tuple(x0.shape[1:]), recipe, update, batch.samples, "critic").to(x0.device)
    flow = score(critic, add_noise(x0, noise, sigma), sigma, batch.conditioning, recipe, x0)
    return critic_flow_loss(flow.float(), x0, noise)
