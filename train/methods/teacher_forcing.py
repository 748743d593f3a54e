"""Stage `tf`: teacher-forced flow matching, which turns a bidirectional model into a block-causal one.

Every block is denoised at its own noise level behind the clean clip, in one forward on [clean clip | noisy clip].
Source: Causal Forcing's causal teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salt.acceleration.transfers import to_device
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import add_noise, warp
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.losses import bell_weight, flow_matching_error
from train.methods.clip_trainer import ClipTrainer, drop_prompts, expand_blocks
from train.rollout.block_causal import ClipModel, causal_flow, clip_blocks
from train.rollout.random_draws import generator_for, seed_for, uniform_for


class TeacherForcingTrainer(ClipTrainer):
    """Trains the student on the clean clips of `data.clips`."""

    def micro_batch_loss(self, batch: Batch, update: int) -> Tensor:
        return self.student.model(self.loss, batch, update)

    def loss(self, student: SaltTransformer3DModel, batch: Batch, update: int) -> Tensor:
        latents = self.read_clips(batch, update).latents
        return teacher_forcing_loss(
            student, latents, drop_prompts(batch, self.recipe, update), batch.samples, self.recipe, update
        )


def teacher_forcing_loss(
    student: ClipModel, latents: Tensor, conditioning: Conditioning, samples: range, recipe: Recipe, update: int
) -> Tensor:
    """Weighted mean of (v - (eps - x0))^2 of latents [B, C, F, H, W], at noise levels drawn for every block.

    Noise levels are uniform steps, shifted; `start.timestep_weight` weighs them; a first frame that is given has none
    and carries no loss. With `start.history_noise` the past of
    half the clips is noised up to that level (uniform), so that the model tolerates an imperfect past.
    """
    seed = recipe.run.seed
    blocks = clip_blocks(recipe.rollout, latents.shape[2])
    steps = [[1000 * uniform_for(seed, "sigma", update, i, b) for b in range(len(blocks))] for i in samples]
    sigma_BF = warp(expand_blocks(steps, blocks), recipe.rollout.shift).float()
    given = 1 if recipe.start.first_frame == "given" else 0
    sigma_BF[:, :given] = 0
    sigma_BF = to_device(sigma_BF, latents.device)
    draws = [
        [torch.randn(latents.shape[1:], generator=generator_for(seed, k, update, i)) for i in samples] for k in "np"
    ]
    noise, history_noise = (to_device(torch.stack(rows), latents.device) for rows in draws)
    strength = [
        recipe.start.history_noise * uniform_for(seed, "history", update, i) * (seed_for(seed, "half", update, i) % 2)
        for i in samples
    ]
    history = add_noise(latents, history_noise, torch.tensor(strength))
    error = teacher_forcing_error(student, latents, history, noise, sigma_BF, conditioning, blocks, recipe.policy)
    if recipe.start.timestep_weight == "bell":
        error = error * bell_weight(sigma_BF, recipe.rollout.shift)[:, None, :, None, None]
    return error[:, :, given:].mean()


def teacher_forcing_error(
    model: ClipModel,
    latents: Tensor,
    history: Tensor,
    noise: Tensor,
    sigma_BF: Tensor,
    conditioning: Conditioning,
    blocks: Sequence[int],
    policy: MemoryPolicy,
) -> Tensor:
    """Squared flow-matching error [B, C, F, H, W] of every block behind `history`, the (nearly) clean clip.

    latents, history, noise: [B, C, F, H, W]. sigma_BF: noise levels [B, F], equal within a block.
    """
    x_t = add_noise(latents, noise, sigma_BF)
    flow = causal_flow(model, x_t, sigma_BF, conditioning, blocks, policy, history)
    return flow_matching_error(flow.float(), latents, noise)
