"""The distillation stage: critic, critic, critic, critic, critic, generator, and again.

Everything random is drawn in `choices.py`, everything to minimise lies in `objectives.py`; here is only their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from train.config.recipe import Recipe
from train.distributed.parallel import DistributedModel, Mode
from train.methods.base import Trainer
from train.methods.sc_dmd_losses import Batch, Models, critic_clip, critic_loss, generator_loss
from train.models import build_critic, build_teacher
from train.rollout.random_draws import UpdateDraws, draw_update


class OffloadedModel:
    """A wrapped model as the objectives call one, brought to the device for the call if it waits on the CPU."""

    def __init__(self, wrapped: DistributedModel, device: torch.device, offload: bool = False) -> None:
        self.wrapped, self.device, self.offload = wrapped, device, offload

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._run(lambda model: model(*arguments, **options))

    def features(self, *arguments: Any, **options: Any) -> Any:
        return self._run(lambda model: model.features(*arguments, **options))

    def block_causal(self, *arguments: Any, **options: Any) -> Any:
        self._bring()  # a scope's tables are made where the model is
        return self.wrapped.model.block_causal(*arguments, **options)

    def _bring(self) -> None:
        if self.offload:
            self.wrapped.model.to(self.device)

    def _run(self, function: Callable[[Any], Any]) -> Any:
        self._bring()
        try:
            return self.wrapped(function)
        finally:
            # Where gradient flows through it (alignment) its weights are needed until backward.
            if self.offload and not torch.is_grad_enabled():
                self.wrapped.model.to("cpu")


class SCDMDTrainer(Trainer):
    """SC-DMD with cache-distribution-aware training (Salt, arXiv 2604.03118), or plain DMD, as the recipe says."""

    def __init__(self, recipe: Recipe, mode: Mode = "single") -> None:
        super().__init__(recipe, mode)
        self.critic = self.learner(build_critic(recipe, self.device), mode, recipe.optimisation.critic_lr)
        self.learners["critic"] = self.critic
        teacher, offload = build_teacher(recipe), recipe.models.offload
        if not offload:
            torch.nn.Module.to(teacher, self.device)
        wrapped = DistributedModel(
            teacher, "single" if offload else mode, self.bf16, compiled=recipe.optimisation.compile
        )
        self.teacher = OffloadedModel(wrapped, self.device, offload)

    def update(self, update: int) -> dict[str, float]:
        """One generator update after its critic updates; mean losses over the global batch."""
        opt = self.recipe.optimisation
        values: dict[str, float] = {}
        for i in range(opt.critic_per_generator):
            step = update * opt.critic_per_generator + i
            choices = draw_update(self.recipe, step, "critic")
            values |= self.accumulate(self.critic, self._critic(choices, step), step, "critic")
            self.critic.step(opt.clip, self.warmup(update))
        choices = draw_update(self.recipe, update, "generator")
        values |= self.accumulate(self.student, self._generator(choices, update), update, "generator")
        return values | {"norm": self.step_student(update)}

    def _critic(self, choices: UpdateDraws, update: int) -> Callable[[Batch], tuple[Tensor, dict[str, float]]]:
        def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
            x0 = self.student.model(critic_clip, batch, self.recipe, choices, update)
            loss = self.critic.model(critic_loss, x0, batch, self.recipe, update)
            return loss, {"critic": loss.item()}

        return loss_of

    def _generator(self, choices: UpdateDraws, update: int) -> Callable[[Batch], tuple[Tensor, dict[str, float]]]:
        critic = OffloadedModel(self.critic.model, self.device)

        def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
            def term(student: Any) -> tuple[Tensor, dict[str, float]]:
                models = Models(student, critic, self.teacher)
                return generator_loss(models, batch, self.recipe, choices, update)

            return self.student.model(term)

        return loss_of
