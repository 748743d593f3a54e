"""The autoregressive rollout: latent blocks, one after another, each denoised in a few steps against the memory.

`rollout` is a generator of finished blocks: previews, decoders, progress bars and training loops consume it. The model
is a function argument, so one loop serves every host.

Per block, by Self Forcing's inference rule (Salt, arXiv 2604.03118, section 3): predict x0, add fresh noise for the
next sigma (SDE) or take a solver's step (ODE, UniPC); after the last step, a context pass of the clean block writes the
memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, Literal

import torch
from torch import Tensor

from .block_plan import (
    Block,
    BlockEdit,
    BlockPlan,
    BlockSource,
    OnStepEnd,
    RolloutSettings,
    ScheduleSource,
    Step,
    block_lengths,
    context_lengths,
)
from .conditioning import PromptChange, PromptSchedule
from .errors import InputError
from .memory import KVMemory, MemoryPass, MemoryPolicy
from .memory.clean_latents import EMPTY, CleanLatents, Reencode, group_lengths, needs_encoder
from .memory.rewound import latents_to_rebuild
from .model_input import Condition, FlowModel, Guide, ModelInput
from .noise import NoiseSource
from .schedule import NUM_TRAIN_TIMESTEPS, ModelCall, add_noise
from .solvers.block_solver import BlockSolver


def rollout(
    model: FlowModel[Condition],
    conditioning: Condition | PromptSchedule[Condition],
    memory: KVMemory,
    noise: NoiseSource,
    frames: int | None,
    settings: RolloutSettings = RolloutSettings(),  # noqa: B008 - frozen
    *,
    negative: Condition | None = None,
    negative_memory: KVMemory | None = None,
    initial_latents: Tensor | None = None,
    history_latents: Tensor | None = None,
    made_latents: Tensor | None = None,
    first_frame: Tensor | None = None,
    ends: Callable[[], bool] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_step_end: OnStepEnd | None = None,
    guide: Guide[Condition] | None = None,
    reencode: Reencode | None = None,
    video: BlockEdit | None = None,
) -> Iterator[Block]:
    """Sample `frames` new latent frames (None: without end) block by block and yield each finished block.

    The clip continues at `memory.next_frame`. The first block that a clip samples takes its schedule's `first_steps`,
    unless it starts from a `video`. Source: Self Forcing's inference rule, as Salt uses it (arXiv 2604.03118,
    section 3). Latents are in the model's normalised space; gradient is as the caller has it.

    conditioning: a `Conditioning` (or whatever `model` understands), or a `PromptSchedule` of them.
    memory: empty, or written by an earlier rollout (extension). A block is written to it when the iterator is advanced
        past that block, so exhaust the iterator before saving or extending.
    noise: initial noise and re-noise of every block as a function of its start frame (see `salt.noise`).
    negative, negative_memory: the unconditional branch, for guidance other than 1.
    initial_latents: [B, C, F', H, W] clean latents that go through context passes first (image or video start).
    history_latents: [B, C, F', H, W] the clean latents before this clip, up to `memory.next_frame` (those before
        `memory.origin` are ignored); an extension needs them for a prompt change that recaches, and where a memory that
        is rebuilt was rewound.
    made_latents: [B, C, F', H, W] of the first blocks, where an earlier rollout has made them, and the memory is as it
        was when that rollout had yielded the first of them. They are yielded again, without being sampled.
    first_frame: [B, C, 1, H, W] clean latents of the clip's first frame (Wan 2.2 TI2V): its place in the first block is
        given, at timestep 0, while the block's other frames are sampled. Has no effect on a clip that goes on.
    ends: asked before every block but the first; the rollout ends where it answers True, with all blocks in the memory.
    on_step: called before every model call; an exception from it ends the rollout, and the memory stays usable.
    on_step_end: called after every denoising step with the block's latents [B, C, F, H, W], which after a block's last
        step are clean; the rollout continues with the latents that it returns.
    guide: evaluates the denoising steps instead of `guidance`, on one branch, or on two where `negative` is given.
        Context passes are calls of `model` as ever, and not fused.
    reencode: what a memory that is rebuilt needs of decoder and encoder, unless it keeps the first frame.
    video: how blocks start from a source video, as `salt.video_in.strength.Strength`.
    Raises InputError for a length that blocks do not fill, a block that does not fit into the policy's window, guidance
    without a negative conditioning, a recache without the latents for it, and a memory that another rollout writes.
    """
    schedules = [PromptSchedule.of(conditioning)]
    memories = [memory]
    if settings.guidance != 1.0 and guide is None and negative is None:
        raise InputError("guidance", "needs a negative conditioning", settings.guidance)
    if negative is not None and (settings.guidance != 1.0 or guide is not None):
        schedules.append(PromptSchedule.of(negative))
        memories.append(negative_memory or memory.empty_like())
    initial_frames = 0 if initial_latents is None else initial_latents.shape[2]
    lengths = [] if frames is None else block_lengths(memory.next_frame + initial_frames, frames, settings)
    memory.policy.check_block(max(lengths, default=settings.frames_per_block))
    if memory.policy.reencodes and reencode is None:
        raise needs_encoder(memory.policy)
    begins = None if memory.next_frame or video is not None else initial_frames
    source = ScheduleSource(
        schedules, settings, noise, memory.next_frame, made_latents, guide, first_frame, video, begins
    )
    run = _Run(model, memories, len(lengths), on_step, on_step_end, source.recaches, reencode)
    with run.writing():
        known = None
        if history_latents is not None:
            forgotten = max(history_latents.shape[2] - (memory.next_frame - memory.origin), 0)  # before a cut
            known = history_latents[:, :, forgotten:]
            for latents in known.split(context_lengths(known.shape[2], settings), dim=2):
                run.remember(latents)
        if memory.is_rewound:
            run.plan = source.at_end_of(memory.next_frame)
            lengths = context_lengths(0 if known is None else known.shape[2], settings)
            run.rebuild(latents_to_rebuild(memory, known, lengths, reencode), memory.next_frame, -1, "recache")
        if initial_latents is not None:
            for latents in initial_latents.split(context_lengths(initial_frames, settings), dim=2):
                run.begin(source.known(memory.next_frame, latents), memory.next_frame, -1)
                run.context_pass(latents, -1)
                run.remember(latents)
        yield from run.blocks(source, frames, ends)


def rollout_from(
    model: FlowModel[Condition],
    source: BlockSource[Condition],
    memory: KVMemory,
    negative_memory: KVMemory | None = None,
    *,
    on_step: Callable[[Step], None] | None = None,
    reencode: Reencode | None = None,
) -> Iterator[Block]:
    """Blocks as `source` plans them, each asked for at its start; the rollout ends where the source answers None.

    The same loop as `rollout`. negative_memory: of the unconditional branch, for blocks with guidance; in blocks
    without, it stays behind, and is written anew from `BlockPlan.history` when guidance comes back.
    A block that was yielded is in the memory before the source is asked for the next (unless its settings fuse).
    """
    memories = [memory] if negative_memory is None else [memory, negative_memory]
    run = _Run(model, memories, 0, on_step, None, False, reencode)
    with run.writing():
        yield from run.blocks(source, None)


class _Run(Generic[Condition]):
    """State of one rollout: its arguments, and the recent clean latents that a recache needs."""

    plan: BlockPlan[Condition]  # of the current block

    def __init__(
        self,
        model: FlowModel[Condition],
        memories: list[KVMemory],
        count: int,
        on_step: Callable[[Step], None] | None,
        on_step_end: OnStepEnd | None,
        remembers: bool,
        reencode: Reencode | None,
    ) -> None:
        self.model, self.memories, self.count = model, memories, count
        self.on_step, self.on_step_end, self.remembers = on_step, on_step_end, remembers
        self.reencode = reencode
        self.recent: list[Tensor] = []
        self.nfe = 0

    @property
    def steps(self) -> int:
        """Denoising steps of the current block."""
        return self.plan.settings.schedule.nfe if self.plan.latents is None else 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        with ExitStack() as held:
            for name, memory in zip(("memory", "negative_memory"), self.memories, strict=False):
                held.enter_context(memory.writing(name))
            yield

    def blocks(
        self, source: BlockSource[Condition], frames: int | None, ends: Callable[[], bool] | None = None
    ) -> Iterator[Block]:
        memory = self.memories[0]
        first = memory.next_frame
        end = None if frames is None else first + frames

        def ask(start: int) -> BlockPlan[Condition] | None:
            is_over = start == end or (start > first and ends is not None and ends())
            return None if is_over else source(start)

        first_flow: Tensor | None = None
        plan, index = ask(memory.next_frame), 0
        while plan is not None:
            began, start = time.perf_counter(), memory.next_frame
            self.begin(plan, start, index)
            x = plan.latents if plan.latents is not None else self.sample(start, plan.length(start), index, first_flow)
            nfe, self.nfe = self.nfe, 0
            self.remember(x)
            seconds, stop = time.perf_counter() - began, start + x.shape[2]
            yield Block(index, self.count, start, stop, x, nfe, seconds, plan.noise.seeds)
            following, first_flow = ask(stop) if plan.settings.fuse else None, None
            if following is not None and self.fusable(following):
                first_flow = self.fused_pass(x, following, index)
            elif not memory.policy.keeps_last_step or plan.latents is not None or plan.guide is not None:
                self.context_pass(x, index)
            plan = following if plan.settings.fuse else ask(stop)
            index += 1

    def sample(self, start: int, length: int, index: int, first_flow: Tensor | None) -> Tensor:
        """Denoise a block; first_flow: its first step's, where it came with the context pass of the block before."""
        solver = BlockSolver(self.plan.settings, lambda draw: self.plan.noise(start, length, draw))
        x = self.given(self.plan.noise(start, length, 0))
        for i, call in enumerate(solver.calls):
            if i == 0 and first_flow is not None:
                flow = first_flow
            else:
                flow = self.call(x, call, index, i)
            x = self.given(solver.step(i, x, flow))
            if self.on_step_end is not None:
                x = self.given(self.on_step_end(Step(index, self.count, i, len(solver.calls), "denoise"), x))
        return x

    def given(self, x: Tensor) -> Tensor:
        """The block's latents, with those that are given in their place."""
        first = self.plan.first_frame
        return x if first is None else torch.cat([first.to(x), x[:, :, first.shape[2] :]], dim=2)

    def call(self, x: Tensor, call: ModelCall, block: int, step: int) -> Tensor:
        t, target = (
            x.new_full((x.shape[0], x.shape[2]), timestep)
            for timestep in (call.timestep, NUM_TRAIN_TIMESTEPS * call.next_sigma)
        )
        if self.plan.first_frame is not None:
            t[:, : self.plan.first_frame.shape[2]] = 0
        return self.guided(x, t, lambda m: m.open_step(x.shape[2], step, self.steps), "denoise", block, step, target)

    def guided(
        self,
        x: Tensor,
        t: Tensor,
        open_pass: Callable[[KVMemory], MemoryPass],
        kind: Literal["denoise", "context", "recache"],
        block: int,
        step: int,
        target: Tensor | None = None,
    ) -> Tensor:
        """One evaluation: a model call per branch, combined by the guidance; blocks that were written are committed."""
        settings = self.plan.settings
        if self.on_step is not None:
            self.on_step(Step(block, self.count, step, self.steps, kind))
        branches = list(zip(self.memories, self.plan.prompts, strict=False))
        given = self.plan.first_frame is not None and kind == "denoise"
        self.nfe += 1
        if self.plan.guide is not None and kind == "denoise":
            inputs = [ModelInput(x, t, prompt.conditioning, open_pass(m), given, target) for m, prompt in branches]
            return self.plan.guide(inputs)
        flows = []
        for memory, prompt in branches:
            memory_pass = open_pass(memory)
            flows.append(self.model(ModelInput(x, t, prompt.conditioning, memory_pass, given, target)))
            memory.commit(memory_pass, settings.context_timestep / NUM_TRAIN_TIMESTEPS)
        if len(flows) == 1:
            return flows[0]
        conditional, unconditional = flows
        return unconditional + settings.guidance * (conditional - unconditional)

    def context_input(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        t = x0.new_full((x0.shape[0], x0.shape[2]), self.plan.settings.context_timestep)
        if not self.plan.settings.context_timestep:
            return x0, t
        start, draw = self.memories[0].next_frame, self.plan.settings.schedule.nfe
        noise = self.plan.noise(start, x0.shape[2], draw)
        return add_noise(x0, noise, self.plan.settings.context_timestep / NUM_TRAIN_TIMESTEPS), t

    @torch.no_grad()
    def context_pass(self, x0: Tensor, block: int) -> None:
        """The one write: a forward of the clean block, whose keys and values are memory from now on."""
        memory = self.memories[0]
        if memory.policy.rebuilt:
            clean = memory.clean.with_block(x0, memory.policy, self.plan.given, self.reencode)
            self.rebuild(clean, memory.next_frame + x0.shape[2], block, "context")
            return
        x, t = self.context_input(x0.detach())
        self.guided(x, t, lambda m: m.open(write=x.shape[2]), "context", block, self.steps)

    @torch.no_grad()
    def rebuild(self, clean: CleanLatents, end: int, block: int, kind: Literal["context", "recache"]) -> None:
        """Write memories anew, up to latent frame `end`, in one forward in which blocks see those before them."""
        x, t = self.context_input(clean.source().to(self.memories[0].device))
        blocks = group_lengths(x.shape[2], self.plan.settings.frames_per_block)
        self.guided(x, t, lambda m: m.open(write=blocks, start=end - sum(blocks)), kind, block, self.steps)
        for memory, _ in zip(self.memories, self.plan.prompts, strict=False):
            memory.clean = clean

    @torch.no_grad()
    def fused_pass(self, x0: Tensor, following: BlockPlan[Condition], block: int) -> Tensor:
        """Context pass of this block and first step of the next in one forward; returns the flow of that step."""
        clean, t_clean = self.context_input(x0)
        start = self.memories[0].next_frame + x0.shape[2]
        length = following.length(start)
        noisy = following.noise(start, length, 0)
        t_noisy = noisy.new_full((noisy.shape[0], length), following.settings.schedule.calls[0].timestep)
        x, t = torch.cat([clean, noisy], dim=2), torch.cat([t_clean, t_noisy], dim=1)
        frames = x0.shape[2]
        flow = self.guided(x, t, lambda m: m.open(write=frames, read=length), "context", block, 0)
        return flow[:, :, frames:]

    def fusable(self, following: BlockPlan[Condition]) -> bool:
        """Whether the next block shares a forward with this one's context pass (also where it is known already, so that
        the memory is the same, bit for bit); one forward has one prompt."""
        others_first = self.plan.settings in (following.settings, following.settings.first)
        same_settings = others_first and following.guide is None
        same_prompt = same_settings and all(
            new.conditioning is old.conditioning and new.switch == "keep"
            for new, old in zip(following.prompts, self.plan.prompts, strict=True)
        )
        return same_prompt and self.memories[0].policy.fuses and not torch.is_grad_enabled()

    def remember(self, x0: Tensor) -> None:
        """Store the clean latents that a later recache may need; without a window, all of them."""
        if not self.remembers:
            return
        self.recent.append(x0.detach())
        window = self.memories[0].policy.window
        while window is not None and sum(x.shape[2] for x in self.recent[1:]) >= window:
            self.recent.pop(0)

    def begin(self, plan: BlockPlan[Condition], start: int, block: int) -> None:
        """Before a block: change what the memories hold, as its plan says."""
        self.plan = plan
        policy = plan.policy or self.memories[0].policy
        other_policy = policy != self.memories[0].policy
        if other_policy:
            policy.check_block(plan.length(start))
        for memory, prompt in zip(self.memories, plan.prompts, strict=False):
            renew = other_policy or (plan.history is not None and memory.next_frame != start)
            if prompt.switch == "cut":
                self.cut()
            elif prompt.switch != "recache" and not renew:
                continue
            elif policy.rebuilt and policy == self.memories[0].policy == memory.policy:
                self.rebuild(self.memories[0].clean, start, block, "recache")
            else:
                self.recache(memory, prompt, start, block, policy if renew else None)
        is_shot = plan.prompts[0].switch == "shot"
        if is_shot or plan.latents is None:  # a known block's shot may have begun already
            for memory, _ in zip(self.memories, plan.prompts, strict=False):
                memory.begin_shot(is_shot)

    def cut(self) -> None:
        """A new scene, for the unconditional branch too: earlier frames are neither read nor re-encoded."""
        self.recent.clear()
        for memory in self.memories:
            memory.renew(self.memories[0].next_frame, self.plan.policy or memory.policy)

    @torch.no_grad()
    def recache(
        self, memory: KVMemory, prompt: PromptChange[Condition], start: int, block: int, renewed: MemoryPolicy | None
    ) -> None:
        """Re-encode the last min(window, t) clean latents under the new prompt (LongLive), in one forward.

        renewed: nothing in the memory is kept, and it has this policy from now on.
        """
        known, policy = self.recent if self.plan.history is None else self.plan.history, renewed or memory.policy
        if not known and renewed is None:
            raise InputError("history_latents", f"is needed for the prompt change with recache at latent frame {start}")
        blocks: list[Tensor] = []
        for x in reversed(known):
            if policy.reach is not None and sum(b.shape[2] for b in blocks) + x.shape[2] > policy.reach:
                break
            blocks.insert(0, x)
        first = start - sum(b.shape[2] for b in blocks)
        if renewed is not None:
            memory.renew(first, renewed, self.memories[0].shots)
        else:
            memory.restart(first, prompt.keep_sink)
        if self.on_step is not None and blocks:
            self.on_step(Step(block, self.count, 0, self.plan.settings.schedule.nfe, "recache"))
        together = [[b] for b in blocks] if policy.one_by_one else [blocks]
        for group in together if blocks else []:
            x = torch.cat(group, dim=2)
            memory_pass = memory.open(write=[b.shape[2] for b in group])
            memory.clean = EMPTY.with_block(x, policy, True, None) if policy.rebuilt else EMPTY
            t = x.new_full((x.shape[0], x.shape[2]), self.plan.settings.context_timestep)
            self.model(ModelInput(x, t, prompt.conditioning, memory_pass))
            memory.commit(memory_pass, self.plan.settings.context_timestep / NUM_TRAIN_TIMESTEPS)
