"""What the student makes as it learns: a grid of clips at fixed prompts and noise as an mp4 one can watch, and the
semigroup defect on the way to them."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.io.video import VideoWriter
from salt.models.streaming_vae import WanStreamDecoder
from salt.models.transformer_salt import CausalModel
from salt.noise import SeededNoise
from salt.sampling import BidirectionalModel
from salt.schedule import Schedule
from salt.semigroup_defect import OPERATORS, Defects
from train.evaluation.semigroup_defect import DefectSettings, conditioning_rows, measure_defect
from train.methods.base import Trainer
from train.rollout.gradient_rollout import play, settings_of
from train.rollout.random_draws import number

GAP = 2  # pixels between clips


class Samples:
    """Writes `samples/NNNNNN.mp4` in the run's folder: a row per prompt, a column per step count."""

    def __init__(self, trainer: Trainer) -> None:
        recipe = trainer.recipe
        self.recipe, self.folder = recipe, Path(recipe.run.out) / "samples"
        vae = AutoencoderKLWan.from_pretrained(recipe.models.vae, torch_dtype=torch.float32)
        nn.Module.to(vae, trainer.device)
        self.decoder = WanStreamDecoder(vae.requires_grad_(False))
        self.prompts, lines = trainer.prompts.first(recipe.run.sample_prompts)
        self.conditioning, _ = trainer.prompts.conditioning(self.prompts, lines)
        self.batch = recipe.optimisation.micro_batch
        self.seeds = [number(recipe.run.seed, "samples", i) for i in range(len(self.prompts))]

    def write(self, trainer: Trainer, done: int) -> Path | None:
        """One grid by the averaged student; every process takes part, the main one decodes and writes."""
        with trainer.ema.swapped():
            columns = [self._clips(trainer, nfe) for nfe in self.recipe.run.sample_steps]
        if not trainer.accelerator.is_main_process:
            return None
        path = self.folder / f"{done:06d}.mp4"
        self.folder.mkdir(parents=True, exist_ok=True)
        # One clip at a time: a grid of full-size clips need not fit the device at once.
        decoded = [[self._pixels(column[i : i + 1]) for column in columns] for i in range(len(self.prompts))]
        with VideoWriter(path) as video:
            video.write(grid(decoded))
        (self.folder / "prompts.txt").write_text("\n".join(self.prompts) + "\n", encoding="utf-8")
        return path

    def defects(self, trainer: Trainer) -> dict[str, float]:
        """The averaged student's semigroup defect on the same prompts, by operator: means over the 4-step grid."""
        r = self.recipe.rollout
        settings = DefectSettings(
            r.frames, r.height, r.width, r.frames_per_block if r.kind == "autoregressive" else 0, self.recipe.policy,
            r.shift, r.independent_first_frame,
        )  # fmt: skip

        def measured(student: Any) -> Defects:
            return measure_defect(student, self.conditioning, settings, batch=self.batch)

        with trainer.ema.swapped():
            found = trainer.student.model(measured)
        return {
            f"defect, {operator}": fmean(value for (_, by), value in found.items() if by == operator)
            for operator in OPERATORS
        }

    @torch.no_grad()
    def _clips(self, trainer: Trainer, nfe: int) -> Tensor:
        r, like = self.recipe.rollout, self.conditioning.text
        settings = settings_of(self.recipe, Schedule.of(nfe, r.shift))

        # As many at a time as an update has room for. Noise is each row's own, so the clips are the same.
        groups = [slice(i, i + self.batch) for i in range(0, len(self.seeds), self.batch)]

        def made(student: Any) -> Tensor:
            clips = []
            for rows in groups:
                call = BidirectionalModel(student) if r.kind == "bidirectional" else CausalModel(student)
                part, seeds = conditioning_rows(self.conditioning, rows), self.seeds[rows]
                channels = student.config.out_channels
                noise = SeededNoise(seeds, len(seeds), channels, r.height, r.width, like.device, like.dtype)
                clips.append(play(call, student, part, self.recipe, settings, noise))
            return torch.cat(clips)

        return trainer.student.model(made)

    def _pixels(self, latents: Tensor) -> Tensor:
        self.decoder.reset()
        return self.decoder.decode(latents)[0].cpu()


def grid(clips: list[list[Tensor]]) -> Tensor:
    """Rows of clips [3, T, H, W] of one size -> [3, T, rows * (H + gap) - gap, columns * (W + gap) - gap]."""
    channels, frames, height, width = clips[0][0].shape
    rows, columns = len(clips), len(clips[0])
    whole = torch.full((channels, frames, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), -1.0)
    for i, row in enumerate(clips):
        for j, clip in enumerate(row):
            y, x = i * (height + GAP), j * (width + GAP)
            whole[:, :, y : y + height, x : x + width] = clip
    return whole
