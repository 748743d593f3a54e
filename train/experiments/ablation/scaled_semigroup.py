"""SC at a share of DMD's gradient, for the deciding experiment: its weight is set anew in every update."""

from __future__ import annotations

from torch import Tensor

from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.distributed.launch import Mode
from train.gradients.measure import gradient_norm
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.sc_dmd_losses import semigroup_term
from train.monitoring.logged_values import LoggedValues
from train.rollout.random_draws import UpdateDraws


class ScaledSemigroupTrainer(SCDMDTrainer):
    """An `SCDMDTrainer` whose semigroup loss has a gradient of `share` times the norm of DMD's, in the weights.

    For one process without activation checkpointing. An update without SC (its last exit step, or another step count)
    is DMD's alone.
    """

    def __init__(self, recipe: Recipe, mode: Mode, share: float) -> None:
        super().__init__(recipe, mode)
        self.share = share

    def generator_terms(
        self, student: SaltTransformer3DModel, batch: Batch, draws: UpdateDraws, update: int
    ) -> tuple[Tensor, LoggedValues]:
        result = self.rollout(student, batch, draws, update, "generator")
        dmd, parts = self.distribution_loss(result, batch, draws, update)
        semigroup, more = semigroup_term(result, self.recipe, draws)
        parameters = [p for p in student.parameters() if p.requires_grad]
        own = gradient_norm(semigroup, parameters)
        if own == 0:
            return dmd, parts
        scale = self.share * gradient_norm(dmd, parameters) / own
        return dmd + scale * semigroup, parts | more | {"semigroup_scale": scale}
