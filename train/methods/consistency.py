"""Stage `cd`: causal consistency distillation, which makes the initial student of distillation without trajectories.

One step of a causal teacher's guided ODE leads from a noised clip to the next point of its trajectory; the student
learns to predict from the first what its weight average predicts from the second. All blocks see the clean clip as
their past. Source: Causal Forcing++ (arXiv 2605.15141) and its release, `NaiveConsistency`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salt.acceleration.transfers import to_device
from salt.conditioning import Conditioning
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import add_noise, euler, flow_to_x0
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.distributed.launch import Mode
from train.losses import consistency_loss
from train.methods.clip_trainer import ClipTrainer, draw_steps, drop_prompts
from train.methods.teacher import placed_teacher
from train.monitoring.update_flops import TransformerConfig
from train.rollout.block_causal import ClipModel, causal_flow, clip_blocks
from train.rollout.random_draws import generator_for


@dataclass(frozen=True)
class Points:
    """Two neighbouring points of the teacher's ODE: clips [B, C, F, H, W] at sigma [B, F], behind the clean clip."""

    clean: Tensor
    x: Tensor
    sigma_BF: Tensor
    following: Tensor
    following_sigma_BF: Tensor


class ConsistencyTrainer(ClipTrainer):
    """Trains the student on the clean clips of `data.clips`, against its own average (`optimisation.ema`)."""

    def __init__(self, recipe: Recipe, mode: Mode = "single") -> None:
        super().__init__(recipe, mode)
        self.teacher = placed_teacher(recipe, self.device, mode, self.sequence)

    def configurations(self) -> dict[str, TransformerConfig]:
        return super().configurations() | {"teacher": self.teacher.wrapped.model.config}

    def update(self, update: int) -> dict[str, float]:
        if self.recipe.optimisation.ema and not self.ema.average:
            self.ema.update()  # the target begins as the student does
        return super().update(update)

    def micro_batch_loss(self, batch: Batch, update: int) -> Tensor:
        latents = self.read_clips(batch, update).latents
        text, recipe = drop_prompts(batch, self.recipe, update), self.recipe
        points = neighbours(self.teacher, latents, text, batch.negative, batch.samples, recipe, update)
        with self.ema.applied():
            target = self.student.model(self.target, points, text)
        return self.student.model(self.loss_to, points, text, target)

    @torch.no_grad()
    def target(self, student: SaltTransformer3DModel, points: Points, text: Conditioning) -> Tensor:
        """The end that the averaged student predicts from the following points."""
        return predicted_end(student, points.following, points.following_sigma_BF, points.clean, text, self.recipe)

    def loss_to(self, student: SaltTransformer3DModel, points: Points, text: Conditioning, target: Tensor) -> Tensor:
        """The student's loss to the target, as one forward of it (see `DistributedModel`)."""
        return consistency_loss(
            predicted_end(student, points.x, points.sigma_BF, points.clean, text, self.recipe), target
        )


@torch.no_grad()
def neighbours(
    teacher: ClipModel,
    latents: Tensor,
    conditioning: Conditioning,
    negative: Conditioning,
    samples: range,
    recipe: Recipe,
    update: int,
) -> Points:
    """Noised clips at steps drawn for them, of the `start.teacher_steps` steps, and where one step of the ODE leads.

    The last step leads to 0, where a clip is its own end.
    """
    seed, guidance = recipe.run.seed, recipe.start.guidance
    blocks = clip_blocks(recipe.rollout, latents.shape[2])
    levels = torch.tensor([*recipe.schedule(recipe.start.teacher_steps).sigmas, 0.0])
    index_BF = draw_steps(recipe, update, samples, blocks, len(levels) - 1)
    sigma_BF, following_BF = (to_device(levels[index], latents.device) for index in (index_BF, index_BF + 1))
    rows = [torch.randn(latents.shape[1:], generator=generator_for(seed, "n", update, i)) for i in samples]
    x = add_noise(latents, to_device(torch.stack(rows), latents.device), sigma_BF)

    def flow(text: Conditioning) -> Tensor:
        return causal_flow(teacher, x, sigma_BF, text, blocks, recipe.policy, latents).float()

    velocity = flow(conditioning)
    if guidance:
        velocity = velocity + guidance * (velocity - flow(negative))
    return Points(latents, x, sigma_BF, euler(x, velocity, sigma_BF, following_BF), following_BF)


def predicted_end(
    model: ClipModel, x: Tensor, sigma_BF: Tensor, clean: Tensor, conditioning: Conditioning, recipe: Recipe
) -> Tensor:
    """f(x, sigma) = x - sigma v [B, C, F, H, W] of clips at sigma [B, F]; x itself where sigma is 0."""
    blocks, policy = clip_blocks(recipe.rollout, x.shape[2]), recipe.policy
    return flow_to_x0(x, causal_flow(model, x, sigma_BF, conditioning, blocks, policy, clean).float(), sigma_BF)
