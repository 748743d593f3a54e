"""The autoregressive rollout: latent blocks, one after another, each denoised in a few steps against the memory.

`rollout` is a generator of finished blocks: previews, decoders, progress bars and training loops consume it. The model
is a function argument, so one loop serves every host.

Per block, by Self Forcing's inference rule (Salt, arXiv 2604.03118, section 3): predict x0, add fresh noise for the
next sigma (SDE) or take the Euler step (ODE); after the last step, a context pass of the clean block writes the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Generic, Literal

import torch
from torch import Tensor

from .conditioning import PromptChange, PromptSchedule
from .errors import InputError
from .memory import KVMemory, MemoryPass, MemoryPolicy
from .model_input import Condition, FlowModel, ModelInput
from .noise import NoiseSource
from .schedule import NUM_TRAIN_TIMESTEPS, Schedule, add_noise, euler, flow_to_x0

Stepping = Literal["sde", "ode"]
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of a rollout.

    schedule: the step list; its length is the number of function evaluations (NFE) per block. stepping: `sde` re-noises
    x0, `ode` takes Euler steps; a tuple has one of them for every transition between two steps.
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
        each = self.stepping if isinstance(self.stepping, tuple) else (self.stepping,)
        if not {*each} <= {"sde", "ode"} or (isinstance(self.stepping, tuple) and len(each) != transitions):
            raise InputError(
                "stepping",
                f"found {self.stepping!r}, expected sde or ode, or a tuple of {transitions} of them, "
                "one for each transition between steps",
            )
        if not 0 <= self.context_timestep < NUM_TRAIN_TIMESTEPS:
            raise InputError("context_timestep", f"found {self.context_timestep}, expected 0 to below 1000")

    def takes_euler(self, transition: int) -> bool:
        """Whether the step after evaluation `transition` is an Euler step (ODE) rather than fresh noise (SDE)."""
        return "ode" == (self.stepping[transition] if isinstance(self.stepping, tuple) else self.stepping)


@dataclass(frozen=True)
class Step:
    """One model call, for `on_step` before and `on_step_end` after it. step: counts from 0 within its block."""

    block: int
    blocks: int
    step: int
    steps: int
    kind: Literal["denoise", "context", "recache"]


OnStepEnd = Callable[[Step, Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """A finished block: clean latents [B, C, F, H, W] of latent frames start (inclusive) to stop (exclusive).

    index, count: which of how many. nfe: model calls since the block before. seconds: wall time of its denoising.
    seeds: the noise source's.
    """

    index: int
    count: int
    start: int
    stop: int
    latents: Tensor
    nfe: int
    seconds: float
    seeds: tuple[int, ...]


@dataclass
class Branch(Generic[Condition]):
    """A conditioning and its memory: the conditional or the unconditional branch. active: of the latest block."""

    memory: KVMemory
    prompts: PromptSchedule[Condition]
    active: PromptChange[Condition]

    @classmethod
    def of(
        cls, memory: KVMemory, conditioning: Condition | PromptSchedule[Condition], frames_per_block: int
    ) -> Branch[Condition]:
        prompts = PromptSchedule.of(conditioning)
        # A change takes effect at the next block, so the latest block's prompt is the one in effect at its start.
        return cls(memory, prompts, prompts.at(max(memory.next_frame - frames_per_block, 0)))


def block_lengths(start: int, frames: int, settings: RolloutSettings) -> list[int]:
    """Lengths in latent frames of the blocks that fill `frames` latent frames from latent frame `start` on.

    Raises InputError when the blocks do not fill the length exactly, naming the nearest lengths that fit.
    """
    n = settings.frames_per_block
    first = 1 if settings.independent_first_frame and start == 0 else 0
    if frames < 1 or (frames - first) % n:
        below = first + (frames - first) // n * n
        near = [str(f) for f in (below, below + n) if f > 0]
        raise InputError(
            "frames",
            f"found {frames} latent frames, expected a multiple of the block of {n}"
            f"{' after an independent first frame' if first else ''} ({' or '.join(near)})",
        )
    return [1] * first + [n] * ((frames - first) // n)


def context_lengths(frames: int, settings: RolloutSettings) -> list[int]:
    """Lengths in latent frames of the context passes of existing latents: whole blocks after a shorter first one."""
    n = settings.frames_per_block
    return [frames % n] * (frames % n > 0) + [n] * (frames // n)


def count_model_calls(blocks: int, settings: RolloutSettings, policy: MemoryPolicy, initial_frames: int = 0) -> int:
    """Model calls of a rollout of `blocks` new blocks, as a progress bar counts them: denoising steps and context
    passes. Recaches of prompt changes and guidance's second branch are not counted."""
    contexts = len(context_lengths(initial_frames, settings))
    contexts += 1 if settings.fuse and policy.fuses else blocks
    return blocks * settings.schedule.nfe + contexts


def rollout(
    model: FlowModel[Condition],
    conditioning: Condition | PromptSchedule[Condition],
    memory: KVMemory,
    noise: NoiseSource,
    frames: int,
    settings: RolloutSettings = RolloutSettings(),  # noqa: B008 - frozen
    *,
    negative: Condition | None = None,
    negative_memory: KVMemory | None = None,
    initial_latents: Tensor | None = None,
    history_latents: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Iterator[Block]:
    """Sample `frames` new latent frames block by block and yield each finished block.

    The clip continues at `memory.next_frame`. Source: Self Forcing's inference rule, as Salt uses it (arXiv 2604.03118,
    section 3). Latents are in the model's normalised space; gradient is as the caller has it.

    conditioning: a `Conditioning` (or whatever `model` understands), or a `PromptSchedule` of them.
    memory: empty, or written by an earlier rollout (extension). A block is written to it when the iterator is advanced
        past that block, so exhaust the iterator before saving or extending.
    noise: initial noise and re-noise of every block as a function of its start frame (see `salt.noise`).
    negative, negative_memory: the unconditional branch, for guidance other than 1.
    initial_latents: [B, C, F', H, W] clean latents that go through context passes first (image or video start).
    history_latents: [B, C, F', H, W] the clean latents before this clip, up to `memory.next_frame` (those before
        `memory.origin` are ignored); an extension needs them only for a prompt change that recaches.
    on_step: called before every model call; an exception from it ends the rollout, and the memory stays usable.
    on_step_end: called after every denoising step with the block's latents [B, C, F, H, W], which after a block's last
        step are clean; the rollout continues with the latents that it returns.
    Raises InputError for a length that blocks do not fill, a block that does not fit into the policy's window, guidance
    without a negative conditioning, a recache without the latents for it, and a memory that another rollout writes.
    """
    branches = [Branch.of(memory, conditioning, settings.frames_per_block)]
    if settings.guidance != 1.0:
        if negative is None:
            raise InputError("guidance", "needs a negative conditioning", settings.guidance)
        unconditional = negative_memory or memory.empty_like()
        branches.append(Branch.of(unconditional, negative, settings.frames_per_block))
    initial_frames = 0 if initial_latents is None else initial_latents.shape[2]
    lengths = block_lengths(memory.next_frame + initial_frames, frames, settings)
    memory.policy.check_block(max(lengths))
    run = _Run(model, branches, noise, settings, len(lengths), on_step, on_step_end)
    with ExitStack() as held:
        for field, branch in zip(("memory", "negative_memory"), branches, strict=False):
            held.enter_context(branch.memory.writing(field))
        if history_latents is not None:
            forgotten = max(history_latents.shape[2] - (memory.next_frame - memory.origin), 0)  # before a cut
            known = history_latents[:, :, forgotten:]
            for latents in known.split(context_lengths(known.shape[2], settings), dim=2):
                run.remember(latents)
        if initial_latents is not None:
            for latents in initial_latents.split(context_lengths(initial_frames, settings), dim=2):
                run.context_pass(latents, -1)
                run.remember(latents)
        yield from run.blocks(lengths)


class _Run(Generic[Condition]):
    """State of one rollout: its arguments, and the recent clean latents that a recache needs."""

    def __init__(
        self,
        model: FlowModel[Condition],
        branches: list[Branch[Condition]],
        noise: NoiseSource,
        settings: RolloutSettings,
        count: int,
        on_step: Callable[[Step], None] | None,
        on_step_end: OnStepEnd | None,
    ) -> None:
        self.model, self.branches, self.noise, self.settings = model, branches, noise, settings
        self.count, self.on_step, self.on_step_end = count, on_step, on_step_end
        self.recent: list[Tensor] = []
        self.nfe = 0

    def blocks(self, lengths: Sequence[int]) -> Iterator[Block]:
        sigmas = self.settings.schedule.sigmas
        first_flow: Tensor | None = None
        for index, length in enumerate(lengths):
            began = time.perf_counter()
            start = self.branches[0].memory.next_frame
            self.switch(start, index)
            x = self.noise(start, length, 0)
            for i, sigma in enumerate(sigmas):
                if i == 0 and first_flow is not None:
                    flow = first_flow
                else:
                    flow = self.call(x, sigma, "denoise", index, i)
                x0 = flow_to_x0(x, flow, sigma)
                last = i + 1 == len(sigmas)
                x = x0 if last else self.renoise(x, x0, flow, (sigma, sigmas[i + 1]), start, i + 1)
                if self.on_step_end is not None:
                    x = self.on_step_end(Step(index, self.count, i, len(sigmas), "denoise"), x)
            nfe, self.nfe = self.nfe, 0
            self.remember(x)
            seconds = time.perf_counter() - began
            yield Block(index, self.count, start, start + length, x, nfe, seconds, self.noise.seeds)
            following = lengths[index + 1] if index + 1 < len(lengths) else 0
            if following and self.fusable(start + length):
                first_flow = self.fused_pass(x, following, index)
            else:
                first_flow = None
                self.context_pass(x, index)

    def renoise(
        self, x: Tensor, x0: Tensor, flow: Tensor, sigmas: tuple[float, float], start: int, draw: int
    ) -> Tensor:
        if self.settings.takes_euler(draw - 1):
            return euler(x, flow, *sigmas)
        return add_noise(x0, self.noise(start, x.shape[2], draw), sigmas[1])

    def call(self, x: Tensor, sigma: float, kind: Literal["denoise", "recache"], block: int, step: int) -> Tensor:
        t = x.new_full((x.shape[0], x.shape[2]), sigma * NUM_TRAIN_TIMESTEPS)
        return self.guided(x, t, lambda m: m.open(read=x.shape[2]), kind, block, step)

    def guided(
        self,
        x: Tensor,
        t: Tensor,
        open_pass: Callable[[KVMemory], MemoryPass],
        kind: Literal["denoise", "context", "recache"],
        block: int,
        step: int,
    ) -> Tensor:
        """One evaluation: a model call per branch, combined by the guidance; blocks that were written are committed."""
        if self.on_step is not None:
            self.on_step(Step(block, self.count, step, self.settings.schedule.nfe, kind))
        flows = []
        for branch in self.branches:
            memory_pass = open_pass(branch.memory)
            conditioning = branch.prompts.at(memory_pass.start_frame).conditioning
            flows.append(self.model(ModelInput(x, t, conditioning, memory_pass)))
            branch.memory.commit(memory_pass, self.settings.context_timestep / NUM_TRAIN_TIMESTEPS)
        self.nfe += 1
        if len(flows) == 1:
            return flows[0]
        conditional, unconditional = flows
        return unconditional + self.settings.guidance * (conditional - unconditional)

    def context_input(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        t = x0.new_full((x0.shape[0], x0.shape[2]), self.settings.context_timestep)
        if not self.settings.context_timestep:
            return x0, t
        start, draw = self.branches[0].memory.next_frame, self.settings.schedule.nfe
        noise = self.noise(start, x0.shape[2], draw)
        return add_noise(x0, noise, self.settings.context_timestep / NUM_TRAIN_TIMESTEPS), t

    @torch.no_grad()
    def context_pass(self, x0: Tensor, block: int) -> None:
        """The one write: a forward of the clean block, whose keys and values are memory from now on."""
        x, t = self.context_input(x0.detach())
        self.guided(x, t, lambda m: m.open(write=x.shape[2]), "context", block, self.settings.schedule.nfe)

    @torch.no_grad()
    def fused_pass(self, x0: Tensor, following: int, block: int) -> Tensor:
        """Context pass of this block and first step of the next in one forward; returns the flow of that step."""
        clean, t_clean = self.context_input(x0)
        start = self.branches[0].memory.next_frame + x0.shape[2]
        noisy = self.noise(start, following, 0)
        t_noisy = noisy.new_full((noisy.shape[0], following), self.settings.schedule.sigmas[0] * NUM_TRAIN_TIMESTEPS)
        x, t = torch.cat([clean, noisy], dim=2), torch.cat([t_clean, t_noisy], dim=1)
        frames = x0.shape[2]
        flow = self.guided(x, t, lambda m: m.open(write=frames, read=following), "context", block, 0)
        return flow[:, :, frames:]

    def fusable(self, next_start: int) -> bool:
        """Whether the next block may share a forward with this one's context pass; one forward has one prompt."""
        same_prompt = all(b.prompts.at(next_start) is b.active for b in self.branches)
        fuses = self.settings.fuse and self.branches[0].memory.policy.fuses
        return fuses and same_prompt and not torch.is_grad_enabled()

    def remember(self, x0: Tensor) -> None:
        """Store the clean latents that a later recache may need; without a window, all of them."""
        if not any(c.switch == "recache" for b in self.branches for c in b.prompts.changes):
            return
        self.recent.append(x0.detach())
        window = self.branches[0].memory.policy.window
        while window is not None and sum(x.shape[2] for x in self.recent[1:]) >= window:
            self.recent.pop(0)

    def switch(self, start: int, block: int) -> None:
        """Apply the prompt changes that take effect at this block to the memory of their branch."""
        for branch in self.branches:
            change, previous = branch.prompts.at(start), branch.active
            branch.active = change
            if change is previous or start == 0:
                continue
            # Of several changes within one block the last prompt is used; the switches of the others apply as well.
            switches = branch.prompts.switches(previous.frame, change.frame)
            if "cut" in switches:
                self.cut()
            elif "recache" in switches:
                self.recache(branch, change, start, block)

    def cut(self) -> None:
        """A new scene, for the unconditional branch too: earlier frames are neither read nor re-encoded."""
        self.recent.clear()
        for branch in self.branches:
            branch.memory.cut()

    @torch.no_grad()
    def recache(self, branch: Branch[Condition], change: PromptChange[Condition], start: int, block: int) -> None:
        """Re-encode the last min(window, t) clean latents under the new prompt (LongLive), in one forward."""
        memory, window = branch.memory, branch.memory.policy.window
        if not self.recent:
            raise InputError("history_latents", f"is needed for the prompt change with recache at latent frame {start}")
        blocks: list[Tensor] = []
        for x in reversed(self.recent):
            if window is not None and sum(b.shape[2] for b in blocks) + x.shape[2] > window:
                break
            blocks.insert(0, x)
        first = start - sum(b.shape[2] for b in blocks)
        if self.on_step is not None:
            self.on_step(Step(block, self.count, 0, self.settings.schedule.nfe, "recache"))
        memory.restart(first, change.keep_sink)
        together = [blocks] if memory.policy.kind != "blended" else [[b] for b in blocks]
        for group in together:
            x = torch.cat(group, dim=2)
            memory_pass = memory.open(write=[b.shape[2] for b in group])
            t = x.new_full((x.shape[0], x.shape[2]), self.settings.context_timestep)
            self.model(ModelInput(x, t, change.conditioning, memory_pass))
            memory.commit(memory_pass, self.settings.context_timestep / NUM_TRAIN_TIMESTEPS)
