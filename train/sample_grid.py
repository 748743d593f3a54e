"""Samples of the student during training: a grid of clips at fixed prompts and noise, and the semigroup defect."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.io.video import VideoWriter
from salt.models.streaming_vae import WanStreamDecoder
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.semigroup_defect import OPERATORS
from train.evaluation.semigroup_defect import DefectSettings, conditioning_rows, measure_defect
from train.methods.base import Trainer
from train.rollout.random_draws import seed_for
from train.rollout.recipe_rollout import clip_noise, flow_model, rollout_settings, run_rollout

GAP = 2  # pixels between clips


class SampleGrid:
    """Writes `samples/NNNNNN.mp4` in the run's folder: a row per prompt, a column per step count."""

    def __init__(self, trainer: Trainer) -> None:
        recipe = trainer.recipe
        self.recipe, self.folder = recipe, Path(recipe.run.out) / "samples"
        self.fps = trainer.facts.spec.fps
        vae = AutoencoderKLWan.from_pretrained(recipe.models.vae, torch_dtype=torch.float32)
        nn.Module.to(vae, trainer.device)
        self.decoder = WanStreamDecoder(vae.requires_grad_(False))
        self.prompts, lines = trainer.prompts.first(recipe.run.sample_prompts)
        self.conditioning, _ = trainer.prompts.conditioning(self.prompts, lines)
        self.first = trainer.prompts.first_latents(lines)
        self.batch = recipe.optimisation.micro_batch
        self.seeds = [seed_for(recipe.run.seed, "samples", i) for i in range(len(self.prompts))]

    def write(self, trainer: Trainer, done: int) -> Path | None:
        """One grid by the averaged student; every process takes part, the main one decodes and writes."""
        with trainer.ema.applied():
            columns = [trainer.student.model(self.clips, nfe) for nfe in self.recipe.run.sample_steps]
        if not trainer.accelerator.is_main_process:
            return None
        path = self.folder / f"{done:06d}.mp4"
        self.folder.mkdir(parents=True, exist_ok=True)
        # One clip at a time: a grid of full-size clips may not fit the device.
        decoded = [[self._pixels(column[i : i + 1]) for column in columns] for i in range(len(self.prompts))]
        with VideoWriter(path, self.fps) as video:
            video.write(grid(decoded))
        (self.folder / "prompts.txt").write_text("\n".join(self.prompts) + "\n", encoding="utf-8")
        return path

    def defects(self, trainer: Trainer) -> dict[str, float]:
        """The averaged student's semigroup defect on the same prompts, by operator: means over the 4-step grid.

        Empty where clips begin with pictures' latents, or steps are not Wan 2.1's, on which the defect is defined.
        """
        r = self.recipe.rollout
        if self.first is not None or r.rule != "wan":
            return {}
        settings = DefectSettings(
            r.frames, r.height, r.width, r.frames_per_block if r.kind == "autoregressive" else 0, self.recipe.policy,
            r.shift, r.independent_first_frame,
        )  # fmt: skip
        measure = partial(measure_defect, conditioning=self.conditioning, settings=settings, batch=self.batch)
        with trainer.ema.applied():
            defects = trainer.student.model(measure)
        return {
            f"defect, {operator}": fmean(value for (_, by), value in defects.items() if by == operator)
            for operator in OPERATORS
        }

    @torch.no_grad()
    def clips(self, student: SaltTransformer3DModel, nfe: int) -> Tensor:
        """Clips [B, C, F, H, W] of all prompts, a micro-batch at a time, as noise is each row's own."""
        text, clips = self.conditioning.text, []
        settings = rollout_settings(self.recipe, self.recipe.schedule(nfe))
        for i in range(0, len(self.seeds), self.batch):
            rows = slice(i, i + self.batch)
            noise = clip_noise(student, self.recipe, self.seeds[rows], text.device, text.dtype)
            model, conditioning = flow_model(student, self.recipe), conditioning_rows(self.conditioning, rows)
            first = None if self.first is None else self.first[rows]
            clips.append(run_rollout(model, student, conditioning, self.recipe, settings, noise, first=first))
        return torch.cat(clips)

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
