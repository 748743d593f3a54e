"""Long tuning by chunks: SC-DMD on streams, which every update of critic or student continues by one chunk.

Counterpart in LongLive: `fwdbwd_one_step_streaming` of trainer/distillation.py. Streams are not part of a checkpoint,
as a KV memory is larger than a student: they end with it, and new ones begin, in a resumed run and in one that goes on.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.distributed.launch import Mode
from train.methods.sc_dmd import Role, SCDMDTrainer
from train.rollout.gradient_rollout import RolloutResult
from train.rollout.random_draws import UpdateDraws
from train.rollout.stream import Stream, chunk_lengths, next_chunk


class LongTuningTrainer(SCDMDTrainer):
    """An `SCDMDTrainer` whose clips are chunks of streams."""

    def __init__(self, recipe: Recipe, mode: Mode = "single") -> None:
        super().__init__(recipe, mode)
        vae = AutoencoderKLWan.from_pretrained(recipe.models.vae, torch_dtype=torch.float32)
        nn.Module.to(vae, self.device)
        self.vae = vae.requires_grad_(False)
        self.streams: dict[range, Stream] = {}
        self.begun = 0  # the chunk that the streams began with, by which their draws are named
        self.lengths: list[int] = []  # new frames of the current chunk and of those after it

    def update_critic(self, step: int, factor: float) -> dict[str, float]:
        per_update = self.recipe.optimisation.critic_per_generator
        update, critic_update = divmod(step, per_update)
        self.begin_chunk(update * (per_update + 1) + critic_update)
        return super().update_critic(step, factor)

    def update_generator(self, update: int) -> dict[str, float]:
        per_update = self.recipe.optimisation.critic_per_generator
        self.begin_chunk(update * (per_update + 1) + per_update)
        return super().update_generator(update)

    def begin_chunk(self, number: int) -> None:
        """Before chunk `number` of the run: where the streams have ended, new ones begin with it."""
        self.lengths = self.lengths[1:]
        if not self.lengths:
            self.streams.clear()
            self.begun, self.lengths = number, chunk_lengths(self.recipe, number)

    def batch(self, update: int, samples: range, role: str) -> Batch:
        if samples not in self.streams:
            batch = self.prompts.batch(self.begun, samples, "stream")
            self.streams[samples] = Stream(batch, batch.seeds(self.recipe, self.begun, "stream"))
        return self.streams[samples].batch

    def rollout(
        self, student: SaltTransformer3DModel, batch: Batch, draws: UpdateDraws, update: int, role: Role
    ) -> RolloutResult:
        stream, gradient = self.streams[batch.samples], role == "generator"
        return next_chunk(student, stream, self.lengths[0], self.recipe, draws, self.vae, gradient=gradient)

    def save(self, done: int) -> None:
        super().save(done)
        self.lengths = []
