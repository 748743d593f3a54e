"""SC-DMD on random windows of clips that are longer than what the scores see (`rollout.long_tuning: window`)."""

from __future__ import annotations

from salt.models.transformer_salt import SaltTransformer3DModel
from train.data.batch import Batch
from train.methods.sc_dmd import Role, SCDMDTrainer
from train.rollout.gradient_rollout import RolloutResult
from train.rollout.late_window import draw_start, rollout_window
from train.rollout.random_draws import UpdateDraws


class LateWindowTrainer(SCDMDTrainer):
    """An `SCDMDTrainer` whose clips are windows; the first block of one within a clip carries no loss."""

    def rollout(
        self, student: SaltTransformer3DModel, batch: Batch, draws: UpdateDraws, update: int, role: Role
    ) -> RolloutResult:
        recipe, start = self.recipe, draw_start(self.recipe, update, role)
        seeds, masked = batch.seeds(recipe, update, role), recipe.rollout.frames_per_block if start else 0
        gradient = role == "generator"
        return rollout_window(
            student, batch.conditioning, recipe, draws, seeds, start=start, masked=masked, gradient=gradient
        )
