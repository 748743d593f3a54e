"""SC-DMD with cache-distribution-aware training (Salt, arXiv 2604.03118); plain DMD where the recipe says so.

One update, in order: draw the step list K and the exit step, roll the student out, score the clip, add up the losses,
step the optimizer. Counterparts in Self Forcing:

    update                      trainer/distillation.py  `train` (the loop's body)
    update_critic / _generator  trainer/distillation.py  `fwdbwd_one_step`
    generator_loss              model/dmd.py             `DMD.generator_loss`
    rollout_with_grad           pipeline/self_forcing_training.py  `inference_with_trajectory`
    dmd_term                    model/dmd.py             `compute_distribution_matching_loss`, `_compute_kl_grad`
    critic_loss                 model/dmd.py             `DMD.critic_loss`
"""

from __future__ import annotations

from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.distributed.launch import Mode
from train.distributed.offloading import OffloadedModel
from train.methods.base import Trainer, largest
from train.methods.learning_rate import rate_factor
from train.methods.reward_weight import RewardWeight
from train.methods.sc_dmd_losses import alignment_term, critic_term, dmd_term, semigroup_term
from train.methods.teacher import placed_teacher
from train.models import build_critic
from train.monitoring.logged_values import LoggedValues
from train.monitoring.update_flops import TransformerConfig
from train.rollout.gradient_rollout import RolloutResult, rollout_with_grad
from train.rollout.random_draws import UpdateDraws, draw_update

Role = Literal["generator", "critic"]


class SCDMDTrainer(Trainer):
    """Distils a student from a teacher (the real score), with a critic (the fake score), from prompts alone."""

    def __init__(self, recipe: Recipe, mode: Mode = "single", prompts: list[str] | None = None) -> None:
        super().__init__(recipe, mode, prompts)
        self.critic = self.learner(build_critic(recipe, self.device), mode, recipe.optimisation.critic_lr)
        self.learners["critic"] = self.critic
        self.critic_score = OffloadedModel(self.critic.model, self.device)
        self.teacher = placed_teacher(recipe, self.device, mode, self.sequence)
        self.reward_weight = RewardWeight(recipe, self.device) if recipe.loss.reward else None

    def configurations(self) -> dict[str, TransformerConfig]:
        return super().configurations() | {"teacher": self.teacher.wrapped.model.config}

    def update(self, update: int) -> dict[str, float]:
        """`critic_per_generator` critic updates, then one generator update; mean losses over the global batch.

        `critic` is the last critic update's loss, `critic_mean` the mean over all of them, `critic_norm` the largest
        norm of their gradients.
        """
        per_generator = self.recipe.optimisation.critic_per_generator  # 5 (Salt, section 4)
        first, factor = update * per_generator, rate_factor(self.recipe.optimisation, update)
        steps = [self.update_critic(first + i, factor) for i in range(per_generator)]
        means = {
            "critic_mean": fmean(step["critic"] for step in steps),
            "critic_norm": largest([step["critic_norm"] for step in steps]),
        }
        return steps[-1] | means | self.update_generator(update)

    def update_critic(self, step: int, factor: float) -> dict[str, float]:
        """One update of the critic, number `step` of all; its loss and its gradient's norm. factor: on the rate."""
        draws = draw_update(self.recipe, step, "critic")  # K and exit step, as the generator draws them (section 3.3)
        values = []
        for batch in self.micro_batches(self.critic, step, "critic"):
            loss, parts = self.critic_loss(batch, draws, step)
            (loss / self.accumulation_steps).backward()
            values.append(parts)
        norm = self.critic.step(self.recipe.optimisation.clip, factor)
        return self.mean_values(values) | {"critic_norm": norm}

    def update_generator(self, update: int) -> dict[str, float]:
        """One update of the student."""
        draws = draw_update(self.recipe, update, "generator")  # K, exit step, (t_s, t_m, t_e), guidance; for all clips
        values = []
        for batch in self.micro_batches(self.student, update, "generator"):
            loss, parts = self.generator_loss(batch, draws, update)
            (loss / self.accumulation_steps).backward()
            values.append(parts)
        norm = self.step_student(update)  # clip, AdamW step, EMA
        return self.mean_values(values) | {"norm": norm}

    def critic_loss(self, batch: Batch, draws: UpdateDraws, step: int) -> tuple[Tensor, LoggedValues]:
        """Flow matching of the critic on clips that the student generates now, without gradient (section 3.1)."""
        x0, learned = self.student.model(self.student_clip, batch, draws, step)
        loss = self.critic.model(critic_term, x0, batch, self.recipe, step, learned)
        return loss, {"critic": loss.detach()}

    def generator_loss(self, batch: Batch, draws: UpdateDraws, update: int) -> tuple[Tensor, LoggedValues]:
        """The loss to minimise and its parts for the log, as one forward of the student (see `DistributedModel`)."""
        return self.student.model(self.generator_terms, batch, draws, update)

    def generator_terms(
        self, student: SaltTransformer3DModel, batch: Batch, draws: UpdateDraws, update: int
    ) -> tuple[Tensor, LoggedValues]:
        """L_DMD + w L_SC 1[K = 8] + w L_align 1[K low] (section 3.3)."""
        recipe = self.recipe
        # Self-Forcing rollout: every block exits at the drawn step, with gradient through that step alone.
        result = self.rollout(student, batch, draws, update, "generator")
        # Scores of the noised clip: the guided teacher's and the critic's (section 3.1).
        dmd, parts = self.distribution_loss(result, batch, draws, update)
        # Semigroup defect at the exit step (section 3.2), on 8-step rollouts only.
        semigroup, semigroup_parts = semigroup_term(result, recipe, draws)
        # Feature distance to a reference on the next denser list (section 3.3), on rollouts of few steps only.
        alignment, alignment_parts = alignment_term(student, self.teacher, result, batch, recipe, draws, update)
        return dmd + semigroup + alignment, parts | semigroup_parts | alignment_parts

    def distribution_loss(
        self, result: RolloutResult, batch: Batch, draws: UpdateDraws, update: int
    ) -> tuple[Tensor, LoggedValues]:
        """L_DMD of the rollout's clip, weighted by its reward where the recipe has one (Re-DMD)."""
        weight_B: Tensor | None = None
        parts: LoggedValues = {}
        if self.reward_weight is not None:
            weight_B, rewards = self.reward_weight(result.x0, batch)
            parts = {"reward": rewards.mean(), "reward_weight": weight_B.mean()}
        clip = (result.x0, batch, self.recipe, draws, update, result.learned, weight_B)
        dmd = dmd_term(self.critic_score, self.teacher, *clip)
        return dmd, parts | {"dmd": dmd.detach()}

    @torch.no_grad()
    def student_clip(
        self, student: SaltTransformer3DModel, batch: Batch, draws: UpdateDraws, step: int
    ) -> tuple[Tensor, int]:
        """Clips [B, C, F, H, W] of the student's current weights, for the critic, and the frames that carry loss."""
        result = self.rollout(student, batch, draws, step, "critic")
        return result.x0, result.learned

    def rollout(
        self, student: SaltTransformer3DModel, batch: Batch, draws: UpdateDraws, update: int, role: Role
    ) -> RolloutResult:
        """The student's clips in an update of `role`, with gradient in the generator's."""
        seeds, gradient = batch.seeds(self.recipe, update, role), role == "generator"
        text, recipe = batch.conditioning, self.recipe
        return rollout_with_grad(student, text, recipe, draws, seeds, gradient=gradient, first=batch.first)
