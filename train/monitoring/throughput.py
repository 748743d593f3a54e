"""How fast a run goes: tokens per second, and its arithmetic as a share of what the device can do at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from salt.planning.arithmetic import WanConfig, forward_flops
from train.config.recipe import Recipe
from train.rollout.block_causal import clip_blocks
from train.rollout.random_draws import UpdateDraws, draw_update

TEXT_TOKENS = 512  # of a prompt, padded
BACKWARD = 2  # of a forward; what checkpointing recomputes is not counted
# Dense bfloat16 operations per second, in 1e12, by what a device's name contains (NVIDIA's data sheets).
PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


class TransformerConfig(WanConfig, Protocol):
    """The configuration of a Wan transformer, with its patches."""

    patch_size: tuple[int, int, int]


@dataclass(frozen=True)
class Throughput:
    """configs: of the run's models by name, `student` and, in distillation, `critic` and `teacher`.

    processes: of the run. peak: operations per second of one device, None where it is not known.
    """

    recipe: Recipe
    configs: Mapping[str, TransformerConfig]
    processes: int
    peak: float | None

    def values(self, update: int, seconds: float) -> dict[str, float]:
        """What to log of an update, counted from 0, that took `seconds`."""
        found = {"tokens_per_second": self.tokens / seconds}
        if self.peak is not None:
            found["peak_share"] = self.flops(update) / self.processes / seconds / self.peak
        return found

    @property
    def tokens(self) -> int:
        """Tokens of the clips that one update trains student and critic on, in all processes."""
        opt = self.recipe.optimisation
        clips = 1 + opt.critic_per_generator if self.recipe.stage == "distill" else 1
        return opt.batch * clips * self._tokens(self._counted)

    def flops(self, update: int) -> float:
        """Operations of one update in all processes: forwards, and twice as much for each backward."""
        opt, student = self.recipe.optimisation, self.configs["student"]
        frames = self.recipe.rollout.frames
        if self.recipe.stage != "distill":
            teacher_forced = 1 if self.recipe.stage == "ode" and self.recipe.start.teacher == "bidirectional" else 2
            return opt.batch * (1 + BACKWARD) * self._forward(student, teacher_forced * frames, teacher_forced * frames)
        per_update = opt.critic_per_generator
        total = self._generator(draw_update(self.recipe, update, "generator"))
        for step in range(update * per_update, (update + 1) * per_update):
            total += self._rollout(draw_update(self.recipe, step, "critic"), gradient=False)
            total += (1 + BACKWARD) * self._score("critic")
        return opt.batch * total

    def _generator(self, draws: UpdateDraws) -> float:
        """Rollout, scores and semigroup branch of one clip; alignment, in few updates, is left out."""
        scores = self._score("critic") + self._score("teacher") * (2 if draws.guidance else 1)
        return self._rollout(draws, gradient=True) + scores

    def _rollout(self, draws: UpdateDraws, gradient: bool) -> float:
        """Every block of a clip, up to the exit step and with its context pass, against its memory."""
        r, window, student = self.recipe.rollout, self.recipe.policy.window, self.configs["student"]
        blocks = [r.frames] if r.kind == "bidirectional" else clip_blocks(r, r.frames)
        steady = self.recipe.streams  # a stream's chunk, behind a memory that is full
        total, start = 0.0, 0
        for n in clip_blocks(r, r.window) if steady else blocks:
            past = (window or r.frames) - n if steady else start
            past = past if window is None else min(past, window - n)
            evaluations = draws.exit_index + 1 + (r.kind != "bidirectional")
            counted = start >= r.frames - self._counted or steady
            evaluations += (BACKWARD + (draws.triple is not None)) * (gradient and counted)
            total += evaluations * self._forward(student, n, past + n)
            start += n
        return total

    def _score(self, name: str) -> float:
        frames = self._counted * (2 if self.recipe.loss.score == "causal" else 1)
        return self._forward(self.configs[name], frames, frames)

    def _forward(self, config: TransformerConfig, frames: int, past: int) -> float:
        return sum(forward_flops(config, self._tokens(frames), self._tokens(past), TEXT_TOKENS).values())

    @property
    def _counted(self) -> int:
        """Latent frames that carry loss."""
        return self.recipe.rollout.window or self.recipe.rollout.frames

    def _tokens(self, frames: int) -> int:
        r, (_, height, width) = self.recipe.rollout, self.configs["student"].patch_size
        return frames * (r.height // height) * (r.width // width)


def device_peak(device: torch.device, precision: str) -> float | None:
    """Dense operations per second of a known device in the precision of the run; None for any other."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * tera for part, tera in PEAK_TFLOPS.items() if part in name), None)
