"""The stages before distillation, where a model that saw whole clips learns to go block by block.

`ode`: from any state on a teacher's trajectory, predict its end (CausVid, Self Forcing; Causal Forcing with a causal
teacher). `tf`: flow matching of every block behind its clean past. No critic, no rollout: one block-causal forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.schedule import add_noise, flow_to_x0, warp
from train.config.recipe import Recipe
from train.data.clip_dataset import Clips
from train.distributed.parallel import Mode
from train.methods.base import Trainer
from train.methods.sc_dmd_losses import Batch
from train.rollout.block_causal import blocks_of, causal_flow
from train.rollout.random_draws import generator, number, uniform


class Starter(Trainer):
    """Stage `ode` or `tf`, on the clips of `data.clips`."""

    def __init__(self, recipe: Recipe, mode: Mode = "single") -> None:
        self.clips = Clips(recipe)
        super().__init__(recipe, mode, self.clips.prompts)

    def update(self, update: int) -> dict[str, float]:
        values = self.accumulate(self.student, lambda batch: self._loss(batch, update), update, "start")
        return values | {"norm": self.step_student(update)}

    def _loss(self, batch: Batch, update: int) -> tuple[Tensor, dict[str, float]]:
        recipe, config = self.recipe, self.student.model.model.config
        lines = [self.prompts.line(update, i, "start") for i in batch.samples]
        found = [self.clips(line, config.out_channels) for line in lines]
        latents = torch.stack([x for x, _ in found]).to(self.device)
        states = [s for _, s in found if s is not None]
        conditioning = dropped(batch, recipe, update)

        def term(student: Any) -> Tensor:
            if recipe.stage == "tf":
                return forcing_loss(student, latents, conditioning, batch.samples, recipe, update)
            trajectory = torch.stack(states).to(self.device)
            return trajectory_loss(student, latents, trajectory, conditioning, batch.samples, recipe, update)

        loss = self.student.model(term)
        return loss, {recipe.stage: loss.item()}


def dropped(batch: Batch, recipe: Recipe, update: int) -> Conditioning:
    """The conditioning, where a clip's draw says so that of the negative prompt."""
    share, seed = recipe.start.prompt_dropout, recipe.run.seed
    out = torch.tensor([uniform(seed, "dropout", update, i) < share for i in batch.samples])
    text = batch.conditioning.text
    return Conditioning(torch.where(out.to(text.device)[:, None, None], batch.negative.text, text))


def per_block(values: list[list[float]], blocks: list[int]) -> Tensor:
    """Values [B][blocks] -> [B, F], each repeated over its block's latent frames."""
    return torch.tensor(values).repeat_interleave(torch.tensor(blocks), dim=1)


def trajectory_loss(
    student: Any, latents: Tensor, trajectory: Tensor, conditioning: Conditioning, samples: range, recipe: Recipe,
    update: int,
) -> Tensor:  # fmt: skip
    """mean((x0(x_t) - x0)^2), x_t a teacher's state at a step drawn for every block (CausVid, eq. 5).

    latents [B, C, F, H, W]: the end of the trajectory [B, S, C, F, H, W]. A causal teacher's blocks saw clean ones
    before them, so the student's do; a bidirectional teacher's saw the states around them.
    """
    blocks = blocks_of(recipe.rollout, latents.shape[2])
    schedule = recipe.schedule(trajectory.shape[1])
    seed = recipe.run.seed
    picked = [[number(seed, "step", update, i, b) % schedule.nfe for b in range(len(blocks))] for i in samples]
    index_BF = per_block([[float(p) for p in row] for row in picked], blocks).long().to(latents.device)
    sigma_BF = torch.tensor(schedule.sigmas, device=latents.device)[index_BF]
    at = index_BF[:, None, None, :, None, None].expand(-1, 1, *latents.shape[1:])
    x_t = trajectory.gather(1, at)[:, 0]
    clean = latents if recipe.start.teacher == "causal" else None
    flow = causal_flow(student, x_t, sigma_BF, conditioning, blocks, recipe.policy, clean)
    return (flow_to_x0(x_t, flow.float(), sigma_BF) - latents).square().mean()


def forcing_loss(
    student: Any, latents: Tensor, conditioning: Conditioning, samples: range, recipe: Recipe, update: int
) -> Tensor:
    """Flow matching, mean((v - (eps - x0))^2), every block at a noise level of its own behind the clean clip.

    Noise levels are uniform steps, shifted. With `start.history_noise` the past is noised up to that much (uniform),
    for half the clips, which forgives the student's own imperfect past.
    """
    seed = recipe.run.seed
    blocks = blocks_of(recipe.rollout, latents.shape[2])
    steps = [[1000 * uniform(seed, "sigma", update, i, b) for b in range(len(blocks))] for i in samples]
    sigma_BF = warp(per_block(steps, blocks), recipe.rollout.shift).float().to(latents.device)
    draws = [[torch.randn(latents.shape[1:], generator=generator(seed, k, update, i)) for i in samples] for k in "np"]
    noise, past_noise = (torch.stack(rows).to(latents.device) for rows in draws)
    strength = [
        recipe.start.history_noise * uniform(seed, "history", update, i) * (number(seed, "half", update, i) % 2)
        for i in samples
    ]
    past = add_noise(latents, past_noise, torch.tensor(strength))
    x_t = add_noise(latents, noise, sigma_BF)
    flow = causal_flow(student, x_t, sigma_BF, conditioning, blocks, recipe.policy, past)
    return (flow.float() - (noise - latents)).square().mean()
