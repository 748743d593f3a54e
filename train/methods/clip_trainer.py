"""Trainer on a dataset of clips: what the stages `ode`, `cd` and `tf` share.

In all three, a model learns to generate block by block by block-causal forwards: there is no critic and no rollout.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from salt.acceleration.transfers import to_device
from salt.conditioning import Conditioning
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.data.clip_dataset import Clip, ClipDataset
from train.distributed.launch import Mode
from train.methods.base import Trainer
from train.monitoring.logged_values import LoggedValues
from train.rollout.random_draws import seed_for, uniform_for


class ClipTrainer(Trainer):
    """Trains the student on the clips of `data.clips`."""

    def __init__(self, recipe: Recipe, mode: Mode = "single") -> None:
        self.clips = ClipDataset(recipe)
        super().__init__(recipe, mode, self.clips.prompts)

    def update(self, update: int) -> dict[str, float]:
        values: list[LoggedValues] = []
        for batch in self.micro_batches(self.student, update, "start"):
            loss = self.micro_batch_loss(batch, update)
            (loss / self.accumulation_steps).backward()
            values.append({self.recipe.stage: loss.detach()})
        return self.mean_values(values) | {"norm": self.step_student(update)}

    @abstractmethod
    def micro_batch_loss(self, batch: Batch, update: int) -> Tensor:
        """The stage's loss of a micro-batch, with gradient through one forward of the student."""

    def read_clips(self, batch: Batch, update: int) -> Clip:
        """The clips of a micro-batch, as one: clean latents [B, C, F, H, W] and the rest."""
        channels = self.student.model.model.config.out_channels
        clips = [self.clips(self.prompts.line(update, i, "start"), channels) for i in batch.samples]
        trajectories = [clip.trajectory for clip in clips if clip.trajectory is not None]
        histories = [clip.history for clip in clips if clip.history is not None]
        return Clip(
            to_device(torch.stack([clip.latents for clip in clips]), self.device),
            to_device(torch.stack(trajectories), self.device) if trajectories else None,
            to_device(torch.stack(histories), self.device) if histories else None,
        )


def drop_prompts(batch: Batch, recipe: Recipe, update: int) -> Conditioning:
    """The conditioning, with the negative prompt for a share `start.prompt_dropout` of the clips."""
    share, seed = recipe.start.prompt_dropout, recipe.run.seed
    dropped = torch.tensor([uniform_for(seed, "dropout", update, i) < share for i in batch.samples])
    text = batch.conditioning.text
    return Conditioning(torch.where(to_device(dropped, text.device)[:, None, None], batch.negative.text, text))


def draw_steps(recipe: Recipe, update: int, samples: range, blocks: list[int], count: int) -> Tensor:
    """A step of `count` by number, [B, F]: drawn for every block, or for the clip (`start.step_for`)."""
    seed, whole = recipe.run.seed, recipe.start.step_for == "clip"
    numbers = [
        [float(seed_for(seed, "step", update, i, 0 if whole else b) % count) for b in range(len(blocks))]
        for i in samples
    ]
    return expand_blocks(numbers, blocks).long()


def expand_blocks(values: list[list[float]], blocks: list[int]) -> Tensor:
    """Values [B][blocks] -> [B, F], each repeated over its block's latent frames."""
    return torch.tensor([[v for v, n in zip(row, blocks, strict=True) for _ in range(n)] for row in values])
