"""Loss terms of SC-DMD on rollouts and clips, composed of the pure losses in `train.losses`.

Latents are [B, C, F, H, W]; every term is a mean over the micro-batch. Counterpart in Self Forcing: `model/dmd.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from salt.acceleration.transfers import to_device
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import NUM_TRAIN_TIMESTEPS, add_noise, flow_to_x0
from train.config.recipe import Losses, Recipe
from train.data.batch import Batch
from train.losses import (
    dmd_gradient,
    dmd_loss,
    flow_matching_loss,
    guided_x0,
    linear_mmd,
    rbf_mmd,
    semigroup_loss,
    time_weight,
    token_relation_distance,
)
from train.monitoring.logged_values import LoggedValues
from train.rollout.block_causal import (
    ClipModel,
    FeatureModel,
    add_channels,
    causal_features,
    causal_flow,
    clip_blocks,
)
from train.rollout.gradient_rollout import RolloutResult
from train.rollout.random_draws import ALIGNMENT_STEPS, UpdateDraws, clip_noises, score_sigmas
from train.rollout.reference_rollout import rollout_reference


def dmd_term(
    critic: ClipModel, teacher: ClipModel, x0: Tensor, batch: Batch, recipe: Recipe, draws: UpdateDraws, update: int,
    learned: int = 0, weight_B: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """L_DMD of a clip x0 with gradient (Self Forcing: `compute_distribution_matching_loss`, `_compute_kl_grad`).

    learned: frames at its end that carry the loss (0: all); the scores see the whole clip. weight_B: of every clip,
    1 by default.
    """
    sigma = clip_sigmas(recipe, update, batch, "generator", x0)
    noise = to_device(clip_noises(tuple(x0.shape[1:]), recipe, update, batch.samples, "generator"), x0.device)
    with torch.no_grad():
        clean = x0.detach()
        x_t = add_noise(clean, noise, sigma)
        fake = score_x0(critic, x_t, sigma, batch.conditioning, recipe, clean)
        real = score_x0(teacher, x_t, sigma, batch.conditioning, recipe, clean)
        if draws.guidance:
            real = guided_x0(real, score_x0(teacher, x_t, sigma, batch.negative, recipe, clean), draws.guidance)
        blocks = clip_blocks(recipe.rollout, clean.shape[2]) if recipe.loss.scale_for == "block" else ()
        gradient = dmd_gradient(clean, real, fake, blocks)
    return dmd_loss(x0[:, :, -learned:], gradient[:, :, -learned:], weight_B).to(x0.dtype)


def score_x0(
    model: ClipModel, x_t: Tensor, sigma: Tensor, conditioning: Conditioning, recipe: Recipe, clean: Tensor
) -> Tensor:
    """A score model's estimate of x0 from the noised clip x_t at sigma [B] or [B, F]."""
    return flow_to_x0(x_t, score_flow(model, x_t, sigma, conditioning, recipe, clean).float(), sigma)


def score_flow(
    model: ClipModel, x: Tensor, sigma: Tensor, conditioning: Conditioning, recipe: Recipe, clean: Tensor
) -> Tensor:
    """Flow of a real or fake score at sigma [B] or [B, F], bidirectional or under the student's block-causal mask.

    clean: the clip without noise, which a causal score sees as every block's past (Salt++).
    """
    if recipe.loss.score != "bidirectional":
        blocks, past = clip_blocks(recipe.rollout, x.shape[2]), clean if recipe.loss.score == "causal" else None
        return causal_flow(
            model, x, per_frame(sigma, x.shape[2]), conditioning, blocks, score_policy(recipe.policy), past
        )
    x, t = add_channels(x, conditioning), sigma * NUM_TRAIN_TIMESTEPS
    return model(x, t, conditioning.text, conditioning.image, return_dict=False)[0]


def clip_sigmas(
    recipe: Recipe, step: int, batch: Batch, role: str, clip: Tensor, max_step: float = NUM_TRAIN_TIMESTEPS
) -> Tensor:
    """Noise levels of the scores of a micro-batch's clips: [B], or [B, F] where the frames of a clip differ.

    A first frame that is given within its block stays clean. Below the highest step there is one level for a clip.
    """
    frames, whole = clip.shape[2], max_step == NUM_TRAIN_TIMESTEPS
    blocks = clip_blocks(recipe.rollout, frames) if recipe.loss.score_step_for == "block" and whole else ()
    sigma = score_sigmas(recipe, step, batch.samples, role, max_step, blocks)
    if batch.first is not None and recipe.rollout.gives_first_frame:
        sigma = per_frame(sigma, frames).clone()
        sigma[:, 0] = 0
    return to_device(sigma, clip.device)


def per_frame(sigma: Tensor, frames: int) -> Tensor:
    """Noise levels [B] or [B, F] as [B, F]."""
    return sigma if sigma.ndim == 2 else sigma[:, None].expand(-1, frames)


def score_policy(policy: MemoryPolicy) -> MemoryPolicy:
    """What a causal score sees of the past: what the student's memory keeps; all of it for relative positions.

    One forward over a whole clip has absolute positions only.
    """
    return MemoryPolicy() if policy.relative or policy.kind == "cyclic" else policy


def semigroup_term(result: RolloutResult, recipe: Recipe, draws: UpdateDraws) -> tuple[Tensor, LoggedValues]:
    """Weighted L_SC (Salt, section 3.2) of a rollout with gradient, and its values for the log; 0 without a triple."""
    if not result.exits.direct:
        return result.x0.new_zeros(()), {}
    loss = recipe.loss
    weight = time_weight(draws.triple.start) if draws.triple and loss.semigroup_time_weight else 1.0
    defect = semigroup_loss(*result.exits.endpoints(), weight, loss.semigroup_stop_gradient)
    return loss.semigroup * defect, {"semigroup": defect.detach(), "semigroup_weight": loss.semigroup * weight}


def alignment_term(
    student: SaltTransformer3DModel,
    teacher: FeatureModel,
    result: RolloutResult,
    batch: Batch,
    recipe: Recipe,
    draws: UpdateDraws,
    update: int,
) -> tuple[Tensor, LoggedValues]:
    """Weighted L_align (Salt, section 3.3), and its value for the log; 0 in updates that do not align.

    The distance of teacher features between the student's clip and a reference on the next denser list, noised alike.
    Gradient flows through the teacher to the student's clip; the reference has none.
    """
    if not has_alignment(recipe, draws, update):
        return result.x0.new_zeros(()), {}
    if draws.exit_index == 0:
        # One step from the same noise on either list: the reference is the clip itself, at no distance, no gradient.
        return result.x0.new_zeros(()), {"align": 0.0}
    seeds = batch.seeds(recipe, update, "reference")
    reference = rollout_reference(student, batch.conditioning, recipe, draws, result, seeds, batch.first)
    sigma = clip_sigmas(recipe, update, batch, "align", reference, ALIGNMENT_STEPS)
    noise = to_device(clip_noises(tuple(reference.shape[1:]), recipe, update, batch.samples, "align"), reference.device)
    with torch.no_grad():
        target = clip_features(teacher, reference, noise, sigma, batch.conditioning, recipe)
    features = clip_features(teacher, result.x0, noise, sigma, batch.conditioning, recipe)
    distance = alignment_distance(features, target, reference.shape[2], recipe.loss)
    return recipe.loss.align_weight * distance, {"align": distance.detach()}


def has_alignment(recipe: Recipe, draws: UpdateDraws, update: int) -> bool:
    """Whether this update carries the alignment loss: by recipe, step count, exit step and start."""
    loss, nfe = recipe.loss, draws.schedule.nfe
    if loss.align == "none" or update < loss.align_start:
        return False
    if loss.align == "release":
        return nfe == 2 and draws.exit_index != 0
    return nfe in (2, 4)


def clip_features(
    teacher: FeatureModel, clip: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, recipe: Recipe
) -> Tensor:
    """Teacher tokens [B, S, dim] after block `align_block` of a clip noised to sigma [B] or [B, F], in float32."""
    x, block = add_noise(clip, noise, sigma), recipe.loss.align_block
    if recipe.loss.score == "causal":
        blocks, sigma_BF = clip_blocks(recipe.rollout, x.shape[2]), per_frame(sigma, x.shape[2])
        policy = score_policy(recipe.policy)
        return causal_features(teacher, x, sigma_BF, conditioning, blocks, policy, clip, block).float()
    x, t, image = add_channels(x, conditioning), sigma * NUM_TRAIN_TIMESTEPS, conditioning.image
    return teacher.features(x, t, conditioning.text, block, encoder_hidden_states_image=image).float()


def alignment_distance(features: Tensor, target: Tensor, frames: int, loss: Losses) -> Tensor:
    """The recipe's distance between tokens [B, frames * tokens, dim]."""
    if loss.align_distance == "trd":
        return token_relation_distance(features, target, frames, loss.align_margin)
    return (linear_mmd if loss.align_distance == "mmd" else rbf_mmd)(features, target)


def critic_term(critic: ClipModel, x0: Tensor, batch: Batch, recipe: Recipe, step: int, learned: int = 0) -> Tensor:
    """Flow matching of the critic on student clips x0. step: counts critic updates. learned: as for `dmd_term`."""
    sigma = clip_sigmas(recipe, step, batch, "critic", x0)
    noise = to_device(clip_noises(tuple(x0.shape[1:]), recipe, step, batch.samples, "critic"), x0.device)
    flow = score_flow(critic, add_noise(x0, noise, sigma), sigma, batch.conditioning, recipe, x0)
    return flow_matching_loss(*(x[:, :, -learned:] for x in (flow.float(), x0, noise)))
