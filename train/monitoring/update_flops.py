"""Floating-point operations of a run's updates, by phase: forwards, backwards, and what checkpointing recomputes.

Matrix products of the transformer blocks and attention are counted (`salt.planning.arithmetic`); text encoder and
autoencoder are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, Protocol

from salt.planning.arithmetic import WanConfig, forward_flops
from train.config.recipe import Recipe
from train.lora_adapters import adapter_of
from train.losses.semigroup import draw_triple
from train.methods.sc_dmd_losses import has_alignment
from train.rollout.block_causal import clip_blocks
from train.rollout.late_window import draw_start, window_starts
from train.rollout.random_draws import UpdateDraws, draw_update, generator_for

TEXT_TOKENS = 512  # of a prompt, padded
PENALISED = 4  # forwards of the discriminator: a real and a generated clip, and both again for its gradient penalty
Gradient = Literal["none", "weights", "input"]


class TransformerConfig(WanConfig, Protocol):
    """The configuration of a Wan transformer, with its channels and patches."""

    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]


@dataclass(frozen=True)
class Work:
    """Operations of one clip, or of several."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.backward + other.backward, self.recomputed + other.recomputed)

    def __mul__(self, factor: float) -> Work:
        return Work(factor * self.forward, factor * self.backward, factor * self.recomputed)

    @property
    def counted(self) -> float:
        """Without what is recomputed, as shares of a peak are usually given."""
        return self.forward + self.backward

    @property
    def total(self) -> float:
        return self.counted + self.recomputed


Phases = dict[str, Work]


def added(*parts: Phases) -> Phases:
    """Sums by phase."""
    total: Phases = {}
    for part in parts:
        for name, work in part.items():
            total[name] = total.get(name, Work()) + work
    return total


def scaled(phases: Phases, factor: float) -> Phases:
    return {name: work * factor for name, work in phases.items()}


@dataclass(frozen=True)
class UpdateFlops:
    """configs: of the run's models by name, `student` and, where the stage has them, `critic` and `teacher`."""

    recipe: Recipe
    configs: Mapping[str, TransformerConfig]

    def of(self, update: int) -> Phases:
        """Work of one update in all processes, by its own draws; alignment, in few updates, is left out."""
        recipe, opt = self.recipe, self.recipe.optimisation
        if recipe.stage != "distill":
            return scaled(self.clip_stage(), opt.batch)
        parts = [self.generator(draw_update(recipe, update, "generator"), self._start(update, "generator"))]
        for step in range(update * opt.critic_per_generator, (update + 1) * opt.critic_per_generator):
            parts.append(self.critic(draw_update(recipe, step, "critic"), self._start(step, "critic")))
        return scaled(added(*parts), opt.batch)

    def expected(self) -> Phases:
        """The mean work of an update in all processes, over all draws, once every loss has begun."""
        recipe, opt = self.recipe, self.recipe.optimisation
        if recipe.stage != "distill":
            return scaled(self.clip_stage(), opt.batch)
        starts, parts = window_starts(recipe) if recipe.windows else [0], []
        for nfe, share in recipe.rollout.share.items():
            exits = list(product(range(nfe), range(recipe.rollout.first_steps or 1)))
            for exit_index, first_exit in exits:
                draws = replace(self._draws(nfe, exit_index), first_exit=first_exit)
                for start in starts:
                    both = added(
                        self.generator(draws, start), self.alignment(draws),
                        scaled(self.critic(draws, start), opt.critic_per_generator),
                    )  # fmt: skip
                    parts.append(scaled(both, share / len(exits) / len(starts)))
        return scaled(added(*parts), opt.batch)

    def generator(self, draws: UpdateDraws, start: int = 0) -> Phases:
        """Rollout, scores and semigroup branch of one clip. start: of its window."""
        scores = self.score("critic") + self.score("teacher") * (2 if draws.guidance else 1)
        if self.recipe.loss.adversarial:
            scores += self.score("critic") + self.score("critic", "input")
        return {"student's rollout": self.rollout(draws, True, start), "scores": scores}

    def critic(self, draws: UpdateDraws, start: int = 0) -> Phases:
        """One update of the critic, and of the discriminator where there is one, on one clip."""
        learning = self.score("critic", "weights")
        if self.recipe.loss.adversarial:
            learning += self.score("critic", "weights") * PENALISED
        return {"critic's rollouts": self.rollout(draws, False, start), "critic": learning}

    def alignment(self, draws: UpdateDraws) -> Phases:
        """Reference rollout and the teacher's features of it and of the student's clip."""
        loss = self.recipe.loss
        if draws.exit_index == 0 or not has_alignment(self.recipe, draws, loss.align_start):
            return {}
        dense = self.recipe.schedule(2 * draws.schedule.nfe)
        exit_step = draws.schedule.steps[draws.exit_index]
        reference = replace(draws, schedule=dense, exit_index=dense.steps.index(exit_step), triple=None)
        depth = (loss.align_block + 1) / self.configs["teacher"].num_layers
        features = self.score("teacher") + self.score("teacher", "input")
        return {"alignment": self.rollout(reference, False) + features * depth}

    def rollout(self, draws: UpdateDraws, gradient: bool, start: int = 0) -> Work:
        """Every block of a clip, up to the exit step and with its context pass, against its memory."""
        recipe, total = self.recipe, Work()
        end = start + recipe.rollout.window if recipe.windows else recipe.rollout.frames
        for frame, n, seen in self._blocks(end):
            once = self._forward("student", n, seen)
            if self._given and frame == 0:
                total += once  # a picture's latent goes through its context pass alone
                continue
            leaves = draws.first_exit if recipe.rollout.first_steps and frame == int(self._given) else draws.exit_index
            calls = draws.schedule.nfe if recipe.windows and frame < start else leaves + 1
            has_context = recipe.rollout.kind != "bidirectional" and (frame + n < end or recipe.streams)
            total += once * (calls - 1 + has_context)
            learns = gradient and frame >= self._first_learned(start)
            total += self._forward("student", n, seen, "weights") if learns else once
            if learns and draws.triple is not None:
                detached = recipe.loss.semigroup_stop_gradient
                total += self._forward("student", n, seen, "none" if detached else "weights")
        return total

    def _blocks(self, end: int) -> Iterator[tuple[int, int, int]]:
        """Latent frame, length and frames that are seen, of every block of a rollout up to a frame.

        Of a stream those of a chunk, behind a memory that is full.
        """
        r, window, frame = self.recipe.rollout, self.recipe.policy.window, 0
        if r.kind == "bidirectional":
            yield 0, r.frames, r.frames
            return
        for n in clip_blocks(r, r.window if self.recipe.streams else r.frames):
            if frame >= end:
                return
            past = (window or r.frames) - n if self.recipe.streams else frame
            yield frame, n, n + (past if window is None else min(past, window - n))
            frame += n

    def _first_learned(self, start: int) -> int:
        """The latent frame from which blocks carry gradient; the first block of a window within a clip does not."""
        r = self.recipe.rollout
        if self.recipe.windows:
            return start + r.frames_per_block if start else 0
        return 0 if self.recipe.streams else r.frames - self._counted

    def score(self, name: str, gradient: Gradient = "none") -> Work:
        """One forward of a score model on a clip."""
        causal = self.recipe.loss.score != "bidirectional"
        if not causal:
            return self._forward(name, self._counted, self._counted, gradient)
        return self._in_blocks(name, self._counted, self.recipe.loss.score == "causal", gradient)

    def clip_stage(self) -> Phases:
        """One clip of the stages before distillation."""
        start, frames, stage = self.recipe.start, self.recipe.rollout.frames, self.recipe.stage
        doubled = not (stage == "ode" and start.teacher == "bidirectional")
        found = {"student": self._in_blocks("student", frames, doubled, "weights")}
        if stage == "cd":
            teacher = self._in_blocks("teacher", frames, True) * (2 if start.guidance else 1)
            found["targets"] = teacher + self._in_blocks("student", frames, True)
        return found

    def _draws(self, nfe: int, exit_index: int) -> UpdateDraws:
        recipe, schedule = self.recipe, self.recipe.schedule(nfe)
        triple = None
        if recipe.loss.semigroup and nfe == 8:
            triple = draw_triple(schedule, exit_index, generator_for("operations"))
        return UpdateDraws(schedule, exit_index, triple, recipe.loss.guidance_max or recipe.loss.guidance)

    def _start(self, update: int, role: str) -> int:
        return draw_start(self.recipe, update, role) if self.recipe.windows else 0

    def _in_blocks(self, name: str, frames: int, doubled: bool, gradient: Gradient = "none") -> Work:
        """One block-causal forward on a clip, or on [clean clip | noisy clip]."""
        total, start, window = Work(), 0, self.recipe.policy.window
        for n in clip_blocks(self.recipe.rollout, frames):
            past = start if window is None else min(start, window - n)
            total += self._forward(name, n, past + n, gradient) * (2 if doubled else 1)
            start += n
        return total

    def _forward(self, name: str, frames: int, seen: int, gradient: Gradient = "none") -> Work:
        """One forward over `frames` latent frames that see `seen`, with its backward."""
        parts = forward_flops(self.configs[name], self.tokens(frames), self.tokens(seen), TEXT_TOKENS)
        linear, attention = parts["linear"], parts["attention"]
        if gradient == "none":
            return Work(linear + attention)
        of_weights = gradient == "weights" and adapter_of(self.recipe, name) is None  # a LoRA's are few
        backward = (2 if of_weights else 1) * linear + 2 * attention
        kept = self.recipe.saved_activations if self.recipe.models.checkpointing else "products"
        recomputed = {"input": linear + attention, "attention": linear, "products": 0.0}[kept]
        return Work(linear + attention, backward, recomputed)

    @property
    def _given(self) -> bool:
        """Whether a clip begins with a picture's latent as a block of its own."""
        config, recipe = self.configs["student"], self.recipe
        beside = config.in_channels > config.out_channels
        return bool(recipe.data.images) and not beside and not recipe.rollout.gives_first_frame

    @property
    def _counted(self) -> int:
        """Latent frames that the scores see."""
        return self.recipe.rollout.window or self.recipe.rollout.frames

    def tokens(self, frames: int) -> int:
        r, (_, height, width) = self.recipe.rollout, self.configs["student"].patch_size
        return frames * (r.height // height) * (r.width // width)
