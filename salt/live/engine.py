"""A steered rollout without threads: blocks that are made one by one, controls that are applied between them.

`LiveSession` runs it in a thread, `play` runs it by a replay file; both make the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic

import torch

from ..acceleration.finite_check import FiniteFlag
from ..acceleration.transfers import to_main_memory
from ..block_plan import BlockPlan
from ..errors import InputError
from ..memory.policy import CYCLE_FRAMES
from ..model_input import Condition
from ..rollout import Block
from .adapters import check_loaded
from .block_plans import NOT_KEPT, BlockPlanner
from .branches import MAX_BOOKMARKS, MAX_BRANCHES, LiveBranch, PlaceBookmark
from .control_checks import check_control
from .controls import Bookmark, Control, Fork, Goto, Policy, Rewind
from .history import (
    SNAPSHOT_BLOCKS,
    History,
    KeptBlock,
    check_reachable,
    default_budget,
    latents_before,
    needs_history,
    path_to,
)
from .live_block import LiveBlock
from .live_model import LiveModel
from .memories import LiveMemories
from .settings import LiveSettings
from .start import LiveStart
from .steering import BlockChoice
from .video_feed import VideoFeed

MAX_LOG = 100_000
LATENT_FRAMES_ALWAYS = 64  # of the newest latents, kept whatever the budget


class LiveEngine(Generic[Condition]):
    """Branches, history, memories and decoder of one live session. Used by one thread at a time.

    decodes: whether blocks come with their frames. feed: pictures that blocks start from. start: what it begins with.
    Raises InputError for settings and a start that do not fit the model or each other.
    """

    def __init__(
        self,
        live_model: LiveModel[Condition],
        settings: LiveSettings,
        decodes: bool = True,
        start: LiveStart | None = None,
        feed: VideoFeed | None = None,
    ) -> None:
        self.live_model, self.feed, self.start = live_model, feed, start
        self.info = live_model.info if start is None else start.session_info(live_model.info)
        loras = self.info.loras if settings.loras is None else settings.loras
        check_loaded(self.info.loras, loras, "loras")
        settings = replace(settings, loras=loras or None)  # a replay begins with the same
        self.first_steering = settings.steering(self.info.policy if start is None else start.policy(self.info.policy))
        self.first_steering.policy.check_block(self.info.frames_per_block)
        live_model.check_prompt(settings.prompt)
        if settings.negative:
            live_model.check_prompt(settings.negative, "negative")
        self.memories = LiveMemories(live_model, self.info, self.first_steering, decodes, start)
        memory = self.memories.memory
        budget = settings.rewind_budget
        if budget is None:
            budget = default_budget(memory.estimate_bytes(memory.policy.window or CYCLE_FRAMES))
        self.settings = replace(settings, rewind_budget=budget)  # a replay goes back as far
        self.history = History(budget)
        self.planner = BlockPlanner(live_model, self.info, self.settings, start, feed)
        self.bookmarks: dict[int, PlaceBookmark] = {}
        self.current = 1
        self.made = self.generation = 0
        self.on_move: Callable[[LiveBranch], None] = lambda branch: None  # with the branch at whose end it goes on
        self.log: list[tuple[int, Control]] = []  # what was applied, each with the number of blocks made before
        before = None
        if start is not None:
            before = start.clip_before(self.first_steering, self.planner.rollout_settings(None, 1.0))
        self.branches = {1: LiveBranch(1, None, self.info.start, before, self.first_steering)}
        self._at: KeptBlock | None = None  # whose state the memories and the decoder have
        self._cutover = False
        self._counted = {"branch": 1, "bookmark": 0}

    @property
    def branch(self) -> LiveBranch:
        return self.branches[self.current]

    @property
    def in_place(self) -> bool:
        """Whether the memories and the decoder have the state after the branch's latest block."""
        return self.branch.tip is self._at

    def apply(self, control: Control) -> None:
        """Between two blocks: a control that is about what blocks are made. Raises InputError where it cannot be."""
        if len(self.log) >= MAX_LOG:
            raise InputError("control", f"found {MAX_LOG:,} controls in the replay of this session, which is the most")
        if isinstance(control, Rewind):
            self._rewind(self.branch, control.seconds)
            self._moved()
        elif isinstance(control, Fork):
            self._fork(self.branch, self._block_at(self.branch, control.seconds))
        elif isinstance(control, Goto):
            self._goto(control)
        elif isinstance(control, Bookmark):
            self._bookmark(control.name)
        else:
            self._steer(control)
        self.log.append((self.made, control))

    def _steer(self, control: Control) -> None:
        steering = self.branch.steering.after(control)
        check_control(control, self.live_model)
        if isinstance(control, Policy):
            steering.policy.check_block(self.info.frames_per_block)
            if steering.policy.reencodes:
                self.memories.needed_decoder()
        choice, tip = steering.choose()[0], self.branch.tip
        if tip is not None and needs_history(choice, tip.choice) and latents_before(tip, choice, tip.stop) is None:
            raise InputError(control.kind, NOT_KEPT)
        self.branch.steering = steering

    def _block_at(self, branch: LiveBranch, seconds: float) -> KeptBlock | None:
        """The block after which the moment `seconds` of a branch is made."""
        end = self.info.first_pixel_frame(branch.end) / self.info.fps
        if seconds > end:
            raise InputError("seconds", f"found {seconds:g}, expected 0 to {end:g}")
        block = branch.block_before(self.info.latent_frame(seconds))
        if block is not None:
            check_reachable(block, self.rewind_from(branch))
        elif branch.tip is not None and not self._begins_at_zero(branch.tip):
            raise InputError("seconds", f"found {seconds:g}, expected {self.rewind_from(branch):g} to {end:g}")
        return block

    def _begins_at_zero(self, tip: KeptBlock) -> bool:
        return not any(block.cut_off for block in tip.back())

    def rewind_from(self, branch: LiveBranch) -> float:
        """The earliest moment of a branch, in seconds, from which it can go on."""
        if branch.tip is None or self._begins_at_zero(branch.tip):
            return 0.0
        reachable = [block.stop for block in branch.tip.back() if block.snapshot is not None]
        return self.info.first_pixel_frame(min(reachable, default=branch.end)) / self.info.fps

    def _rewind(self, branch: LiveBranch, seconds: float) -> None:
        tip = self._block_at(branch, seconds)
        branch.rewind(tip, self.first_steering if tip is None else tip.steering)
        self.bookmarks = {i: b for i, b in self.bookmarks.items() if b.branch != branch.id or b.end <= branch.end}

    def _fork(self, old: LiveBranch, tip: KeptBlock | None) -> None:
        if len(self.branches) >= MAX_BRANCHES:
            raise InputError("fork", f"found {MAX_BRANCHES} branches, which is the most")
        self._counted["branch"] += 1
        steering = self.first_steering if tip is None else tip.steering
        new = LiveBranch(self._counted["branch"], old.id, 0 if tip is None else tip.stop, tip, steering)
        new.changes = [c for c in old.changes if c.start < new.end]
        self.branches[new.id], self.current = new, new.id
        self._moved()

    def _goto(self, control: Goto) -> None:
        if control.bookmark is not None:
            mark = self.bookmarks.get(control.bookmark)
            if mark is None:
                raise InputError("bookmark", f"found no bookmark {control.bookmark}")
            if mark.tip is not None:
                check_reachable(mark.tip, self.rewind_from(self.branches[mark.branch]))
            if self.branches[mark.branch].tip is not mark.tip:
                self._fork(self.branches[mark.branch], mark.tip)
                return
            self.current = mark.branch
            self._moved()
            return
        branch = self.branches.get(control.branch or 0)
        if branch is None:
            raise InputError("branch", f"found no branch {control.branch}")
        if control.seconds is not None:
            self._rewind(branch, control.seconds)
        elif branch.tip is not None and branch.tip is not self._at:
            check_reachable(branch.tip, self.rewind_from(branch))
        self.current = branch.id
        self._moved()

    def _moved(self) -> None:
        self.generation += 1
        self._cutover = True
        self.on_move(self.branch)

    def _bookmark(self, name: str) -> None:
        if len(self.bookmarks) >= MAX_BOOKMARKS:
            raise InputError("bookmark", f"found {MAX_BOOKMARKS} bookmarks, which is the most")
        self._counted["bookmark"] += 1
        number = self._counted["bookmark"]
        self.bookmarks[number] = PlaceBookmark(number, name, self.current, self.branch.tip, self.branch.end)

    @torch.no_grad()
    def blocks(self, gate: Callable[[], bool]) -> Iterator[LiveBlock]:
        """Blocks of the current branch. gate: called before every block; it may apply controls, and ends by False."""
        allowed = False  # the gate has let a block through, and what it is made after is not in the memory yet
        while True:
            source = _GatedSource(self, gate, allowed)
            for block in self.memories.rollout(source):
                yield self._keep(block, source.choice, source.plan)
            if source.ended:
                return
            self.rebuild()
            allowed = True

    def _keep(self, block: Block, choice: BlockChoice, plan: BlockPlan[Condition]) -> LiveBlock:
        branch, before = self.branch, self.branch.tip
        scene = block.start if choice.switch == "cut" else 0 if before is None else before.scene
        steering = branch.steering.choose()[1]
        if before is not None:  # blocks that are made alike share what says so
            choice = before.choice if before.choice == choice else choice
            steering = before.steering if before.steering == steering else steering
        kept = KeptBlock(
            self.made, branch.blocks, block.start, block.stop, scene, choice, steering,
            to_main_memory(block.latents), before, denoising=self.planner.denoising(plan, block.start),
            is_start=plan.given,
        )  # fmt: skip
        self.made += 1
        branch.add(kept)
        self.history.add(kept)
        self._at = kept
        cutover, self._cutover = self._cutover or choice.switch == "cut", False
        frames = self.memories.decoded(block)
        first_frame = self.info.first_pixel_frame(block.start)
        return LiveBlock(
            kept,
            branch.id,
            self.generation,
            first_frame,
            cutover,
            block.latents,
            FiniteFlag.of(block.latents),
            frames,
            None if self.feed is None else self.feed.stamp,
        )

    def take_snapshot(self) -> None:
        """After a block whose context pass is done: a snapshot where one is due, and the budget."""
        block = self._at
        due = block is not None and block.snapshot is None and (block.index + 1) % SNAPSHOT_BLOCKS == 0
        if block is not None and due and self.history.has_room(self.memories.snapshot_bytes):
            follows = self.memories.negative_memory.next_frame == block.stop and block.choice.guidance != 1.0
            self.history.add_snapshot(block, self.memories.snapshot(follows))
        if self.history.exceeded:
            tips = [b.tip for b in (*self.branches.values(), *self.bookmarks.values()) if b.tip is not None]
            window = self.branch.steering.policy.window or 0
            self.history.trim(tips, max(LATENT_FRAMES_ALWAYS, window) // self.info.frames_per_block + 1)

    @torch.no_grad()
    def rebuild(self) -> None:
        """Give the memories and the decoder the state after the branch's latest block."""
        tip = self.branch.tip
        path = [] if tip is None else path_to(tip)
        if path is None:
            raise InputError("branch", "cannot go on: what its memory is made from is no longer kept")
        snapshot = path[0].previous.snapshot if path and path[0].previous else None
        snapshot = tip.snapshot if tip is not None and not path else snapshot
        self._at = None
        self.memories.restore(snapshot)
        blocks = iter(path)

        def source(start: int) -> BlockPlan[Condition] | None:
            block = next(blocks, None)
            return None if block is None else self.planner.plan_again(block)

        for block in self.memories.rollout(source):
            self.memories.decoded(block)
        self._at = tip


class _GatedSource(Generic[Condition]):
    """The `BlockSource` of new blocks. ended: whether the gate has ended them."""

    choice: BlockChoice
    plan: BlockPlan[Condition]  # of the latest block

    def __init__(self, engine: LiveEngine[Condition], gate: Callable[[], bool], allowed: bool) -> None:
        self.engine, self.gate, self.allowed, self.ended = engine, gate, allowed, False

    def __call__(self, start: int) -> BlockPlan[Condition] | None:
        engine, allowed = self.engine, self.allowed
        self.allowed = False
        engine.take_snapshot()
        if not allowed and not self.gate():
            self.ended = True
            return None
        if not engine.in_place:
            return None
        self.choice = engine.branch.steering.choose()[0]
        self.plan = engine.planner.plan_new(self.choice, engine.branch.tip)
        return self.plan
