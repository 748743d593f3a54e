"""What a rollout is asked for and answers: its settings, the plan of every block, and finished blocks.

A `BlockSource` answers at the start of every block how it is made, so that prompts, steps, noise and memory policy may
change from block to block. `ScheduleSource` is the one of a rollout whose prompts are known before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Protocol

from torch import Tensor

from .conditioning import PromptChange, PromptSchedule, Switch
from .errors import InputError
from .memory import MemoryPolicy
from .model_input import Condition, Guide
from .noise import NoiseSource
from .schedule import NUM_TRAIN_TIMESTEPS, STEPPINGS, Schedule, Stepping, first_block

MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of a rollout.

    schedule: the step list; its length is the number of function evaluations (NFE) per block. stepping: `sde` re-noises
    x0, `ode` takes Euler steps, `unipc` those of UniPC; a tuple has `sde` or `ode` for every transition between steps.
    frames_per_block: latent frames per block. independent_first_frame: the first block of a clip is one latent frame.
    guidance: scale of classifier-free guidance, 0 to 100, 1 = off (one model call per step). context_timestep: noise
    level of the context pass in [0, 1000), 0 = clean. fuse: the context pass of a block and the first step of the next
    block are one forward (same result).
    Raises InputError for a value out of range. Source: Salt (arXiv 2604.03118, section 3); context pass: Self Forcing.
    """

    schedule: Schedule = field(default_factory=Schedule)
    stepping: Stepping | tuple[Stepping, ...] = "sde"
    frames_per_block: int = 3
    independent_first_frame: bool = False
    guidance: float = 1.0
    context_timestep: float = 0.0
    fuse: bool = False

    def __post_init__(self) -> None:
        if self.frames_per_block < 1:
            raise InputError("frames_per_block", f"found {self.frames_per_block}, expected 1 or more")
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise InputError("guidance", f"found {self.guidance}, expected 0 to {MAX_GUIDANCE:g}, 1 for none")
        transitions = self.schedule.nfe - 1
        if isinstance(self.stepping, tuple) and self.schedule.first.nfe != self.schedule.nfe:
            raise InputError("stepping", "found several, expected one: the first block has more transitions")
        known = isinstance(self.stepping, str) and self.stepping in STEPPINGS
        if isinstance(self.stepping, tuple):
            known = {*self.stepping} <= {"sde", "ode"} and len(self.stepping) == transitions
        if not known:
            raise InputError(
                "stepping",
                f"found {self.stepping!r}, expected sde, ode or unipc, or a tuple of {transitions} sde or ode, "
                "one for each transition between steps",
            )
        if not 0 <= self.context_timestep < NUM_TRAIN_TIMESTEPS:
            raise InputError("context_timestep", f"found {self.context_timestep}, expected 0 to below 1000")

    @property
    def first_block(self) -> int:
        """Latent frames of a clip's first block where it is unlike the others, else 0."""
        return first_block(self.frames_per_block, self.independent_first_frame, self.schedule.rule)

    @property
    def first(self) -> RolloutSettings:
        """The settings of the first block that a clip samples."""
        return replace(self, schedule=self.schedule.first) if self.schedule.first_steps else self

    def denoising_steps(self, blocks: int, begins: bool) -> int:
        """Of so many blocks. begins: whether the first of them is the first that the clip samples."""
        extra = self.schedule.first.nfe - self.schedule.nfe if begins and blocks else 0
        return blocks * self.schedule.nfe + extra


def block_lengths(start: int, frames: int, settings: RolloutSettings) -> list[int]:
    """Lengths in latent frames of the blocks that fill `frames` latent frames from latent frame `start` on.

    Raises InputError when the blocks do not fill the length exactly, naming the nearest lengths that fit.
    """
    n = settings.frames_per_block
    first = settings.first_block if start == 0 else 0
    if frames < 1 or (frames - first) % n:
        below = first + (frames - first) // n * n
        near = [str(f) for f in (below, below + n) if f > 0]
        raise InputError(
            "frames",
            f"found {frames} latent frames, expected a multiple of the block of {n}"
            f"{f' after a first one of {first}' if first else ''} ({' or '.join(near)})",
        )
    return [first] * (first > 0) + [n] * ((frames - first) // n)


def context_lengths(frames: int, settings: RolloutSettings) -> list[int]:
    """Lengths in latent frames of the context passes of existing latents: whole blocks after a shorter first one."""
    n = settings.frames_per_block
    return [frames % n] * (frames % n > 0) + [n] * (frames // n)


def count_model_calls(
    blocks: int, settings: RolloutSettings, policy: MemoryPolicy, initial_frames: int = 0, *, begins: bool = False
) -> int:
    """Model calls of a rollout of `blocks` new blocks, as a progress bar counts them: denoising steps and context
    passes. Recaches of prompt changes and guidance's second branch are not counted. begins: of `denoising_steps`.
    """
    contexts = len(context_lengths(initial_frames, settings))
    contexts += 1 if settings.fuse and policy.fuses else blocks
    return settings.denoising_steps(blocks, begins) + contexts


@dataclass(frozen=True)
class Step:
    """One model call, for `on_step` before and `on_step_end` after it. step: counts from 0 within its block; blocks: 0
    for a rollout without end."""

    block: int
    blocks: int
    step: int
    steps: int
    kind: Literal["denoise", "context", "recache"]


OnStepEnd = Callable[[Step, Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """A finished block: clean latents [B, C, F, H, W] of latent frames start (inclusive) to stop (exclusive).

    index, count: which of how many, 0 for a rollout without end. nfe: model calls since the block before. seconds: wall
    time of its denoising. seeds: the noise source's.
    """

    index: int
    count: int
    start: int
    stop: int
    latents: Tensor
    nfe: int
    seconds: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class BlockPlan(Generic[Condition]):
    """How the next block is made: what a `BlockSource` answers at its start.

    prompts: its conditioning, and with guidance that of the unconditional branch; the switch of each is applied to its
    memory first (`keep`: nothing). settings, noise: of this block.
    policy: of the memory from this block on, None as before; with another one the recent latents are re-encoded.
    history: clean latents of the blocks before it, oldest first, for what is re-encoded: a recache, another policy, an
    unconditional branch that has not followed. None: those that the rollout remembers.
    latents: [B, C, F, H, W] of a block that is known: it is not sampled, only its context pass runs. given: they are
        part of the clip's start, which was not generated.
    guide: evaluates the denoising steps instead of the settings' guidance, on as many branches as there are prompts.
    first_frame: [B, C, 1, H, W] of the block's first frame where it is given: it stays as it is, at timestep 0.
    """

    prompts: Sequence[PromptChange[Condition]]
    settings: RolloutSettings
    noise: NoiseSource
    policy: MemoryPolicy | None = None
    history: Sequence[Tensor] | None = None
    latents: Tensor | None = None
    guide: Guide[Condition] | None = None
    first_frame: Tensor | None = None
    given: bool = False

    def __post_init__(self) -> None:
        if self.guide is None and len(self.prompts) != (1 if self.settings.guidance == 1.0 else 2):
            raise InputError("guidance", "needs a negative conditioning", self.settings.guidance)

    def length(self, start: int) -> int:
        """Latent frames of the block when it starts at latent frame `start`."""
        if self.latents is not None:
            return self.latents.shape[2]
        return (self.settings.first_block if start == 0 else 0) or self.settings.frames_per_block


# Asked at the start of every block, with its latent frame; None ends the rollout.
BlockSource = Callable[[int], BlockPlan[Condition] | None]


class BlockEdit(Protocol):
    """Changes the plan of a block that is to be sampled: video to video (`salt.video_in`)."""

    def __call__(self, plan: BlockPlan[Condition], start: int) -> BlockPlan[Condition]: ...


class ScheduleSource(Generic[Condition]):
    """The `BlockSource` of a rollout whose prompts are known before it begins.

    start: latent frame of its first block. made: latents of its first blocks, where they are known; what the first of
    them does to the memory is done. first_frame: of the clip, where it is given. edit: changes the plans of the others.
    begins: latent frame of the first block that the clip samples, None where that was sampled before.
    """

    def __init__(
        self,
        schedules: Sequence[PromptSchedule[Condition]],
        settings: RolloutSettings,
        noise: NoiseSource,
        start: int,
        made: Tensor | None = None,
        guide: Guide[Condition] | None = None,
        first_frame: Tensor | None = None,
        edit: BlockEdit | None = None,
        begins: int | None = None,
    ) -> None:
        self.begins = begins
        self.first_frame, self.edit = first_frame, edit
        self.schedules, self.settings, self.noise, self.guide = schedules, settings, noise, guide
        self.start, self.made = start, made
        # A change takes effect at the next block, so the latest block's prompt is the one in effect at its start.
        at = max(start - settings.frames_per_block, 0) if made is None else start
        self.active = [prompts.at(at) for prompts in schedules]

    @property
    def recaches(self) -> bool:
        return any(c.switch == "recache" for prompts in self.schedules for c in prompts.changes)

    def __call__(self, start: int) -> BlockPlan[Condition]:
        before, self.active = self.active, [prompts.at(start) for prompts in self.schedules]
        changes = [
            self._change(now, self._switch(prompts, old, now) if start else "keep")
            for prompts, old, now in zip(self.schedules, before, self.active, strict=True)
        ]
        first_frame = None if start else self.first_frame
        settings = self.settings.first if start == self.begins else self.settings
        plan = BlockPlan(changes, settings, self.noise, guide=self.guide, first_frame=first_frame)
        if self.made is None or start - self.start >= self.made.shape[2]:
            return plan if self.edit is None else self.edit(plan, start)
        return replace(plan, latents=self.made[:, :, start - self.start :][:, :, : plan.length(start)])

    def at_end_of(self, frame: int) -> BlockPlan[Condition]:
        """The plan of the block before latent frame `frame`, whose prompts a memory up to there was written with."""
        return self.known(max(frame - self.settings.frames_per_block, 0), None)

    def known(self, start: int, latents: Tensor | None) -> BlockPlan[Condition]:
        """The plan of latents that are there before the rollout, which changes no memory."""
        changes = [replace(prompts.at(start), switch="keep") for prompts in self.schedules]
        return BlockPlan(changes, self.settings, self.noise, latents=latents, guide=self.guide, given=True)

    @staticmethod
    def _switch(prompts: PromptSchedule[Condition], old: PromptChange, now: PromptChange) -> Switch:
        """Of several changes within one block the last prompt is used; the switches of the others apply as well."""
        switches = prompts.switches(old.frame, now.frame)
        by_strength: tuple[Switch, ...] = ("cut", "shot", "recache", "keep")
        return next(switch for switch in by_strength if switch in {*switches, "keep"})

    @staticmethod
    def _change(change: PromptChange[Condition], switch: Switch) -> PromptChange[Condition]:
        first = change.first_block if switch == "shot" else None
        return replace(change, switch=switch, conditioning=change.conditioning if first is None else first)
