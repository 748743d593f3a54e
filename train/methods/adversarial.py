"""SC-DMD beside a discriminator on real clips (`loss.adversarial`).

A student inherits its teacher's faults; real clips have none of them. DMD2 (arXiv 2405.14867) uses them in an
adversarial loss. Every pair has one caption: the student generates for the captions of the clips in `data.clips`. The
clips that the critic learns from serve the discriminator, too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from salt.acceleration.transfers import to_device
from train.adversarial.discriminator import add_head, logits
from train.adversarial.pairs import MAX_SIGMA, NoisyPairs, adversarial_term, clip_gradient, discriminator_terms
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.data.clip_dataset import ClipDataset
from train.distributed.launch import Mode
from train.methods.sc_dmd import Role, SCDMDTrainer
from train.methods.sc_dmd_losses import critic_term
from train.models import build_critic
from train.monitoring.logged_values import LoggedValues
from train.rollout.gradient_rollout import RolloutResult
from train.rollout.random_draws import UpdateDraws, clip_noises, seed_for, uniform_for


class AdversarialTrainer(SCDMDTrainer):
    """An `SCDMDTrainer` with a third learner, the discriminator, initialised from the critic's checkpoint."""

    def __init__(self, recipe: Recipe, mode: Mode = "single") -> None:
        self.clips = ClipDataset(recipe)
        super().__init__(recipe, mode, self.clips.prompts)
        body = add_head(build_critic(recipe, self.device), seed_for(recipe.run.seed, "discriminator"))
        self.discriminator = self.learner(body, mode, recipe.optimisation.discriminator_lr)
        self.learners["discriminator"] = self.discriminator

    def update_critic(self, step: int, factor: float) -> dict[str, float]:
        """One update of the critic and of the discriminator, on the same clips of the student."""
        values = super().update_critic(step, factor)
        return values | {"discriminator_norm": self.discriminator.step(self.recipe.optimisation.clip, factor)}

    def critic_loss(self, batch: Batch, draws: UpdateDraws, step: int) -> tuple[Tensor, LoggedValues]:
        """The critic's loss; the discriminator's gradients are computed on the way."""
        x0, learned = self.student.model(self.student_clip, batch, draws, step)
        with self.discriminator.model.accumulating(last=self.is_last(batch)):
            pairs = self.noisy_pairs(x0.float(), batch, step, "critic")
            spread = [clip_noises(tuple(x0.shape[1:]), self.recipe, step, batch.samples, f"spread {i}") for i in "rf"]
            noise = to_device(torch.cat(spread), x0.device)
            model = self.discriminator.model
            loss, penalty = model(lambda body: discriminator_terms(partial(logits, body), pairs, even(x0), noise))
            ((loss + penalty) / self.accumulation_steps).backward()
        critic = self.critic.model(critic_term, x0, batch, self.recipe, step, learned)
        return critic, {"critic": critic.detach(), "discriminator": loss.detach()}

    def distribution_loss(
        self, result: RolloutResult, batch: Batch, draws: UpdateDraws, update: int
    ) -> tuple[Tensor, LoggedValues]:
        """DMD's gradient in the clip and, from `adversarial_start` on, the adversarial one in the recipe's ratio."""
        loss = self.recipe.loss
        if update < loss.adversarial_start:
            return super().distribution_loss(result, batch, draws, update)
        fake = result.x0.detach().requires_grad_()
        dmd, parts = super().distribution_loss(replace(result, x0=fake), batch, draws, update)
        pairs = self.noisy_pairs(fake.float(), batch, update, "generator")
        with self.discriminator.model.accumulating(last=False):  # no gradient of its weights to reduce
            model = self.discriminator.model
            adversarial = model(lambda body: adversarial_term(partial(logits, body), pairs, even(fake)))
            gradient = clip_gradient(fake, adversarial, dmd, loss.adversarial)
        return (result.x0 * gradient).sum(), parts | {"adversarial": adversarial.detach()}

    def noisy_pairs(self, fake: Tensor, batch: Batch, update: int, role: Role) -> NoisyPairs:
        """The student's clips beside the real ones of the same captions, noised by the clips' own draws."""
        channels, seed = fake.shape[1], self.recipe.run.seed
        lines = [self.prompts.line(update, i, role) for i in batch.samples]
        real = torch.stack([self.clips(line, channels).latents for line in lines])
        sigma = torch.tensor([MAX_SIGMA * uniform_for(seed, role, update, i, "pair") for i in batch.samples])
        kinds = (f"{role} real", f"{role} fake")
        noises = [clip_noises(tuple(fake.shape[1:]), self.recipe, update, batch.samples, kind) for kind in kinds]
        real, sigma, *both = (to_device(x, fake.device) for x in (real, sigma, *noises))
        return NoisyPairs.of(real, fake, sigma, batch.conditioning.text, (both[0], both[1]))

    def is_last(self, batch: Batch) -> bool:
        """Whether this micro-batch is the last of this process's share."""
        share = self.accumulation_steps * self.recipe.optimisation.micro_batch
        return batch.samples.stop == (self.share + 1) * share


def even(clips: Tensor) -> Tensor:
    """Equal weights [F] of the frames of clips [B, C, F, H, W]."""
    frames = clips.shape[2]
    return torch.full((frames,), 1 / frames, device=clips.device)
