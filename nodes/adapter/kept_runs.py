"""The latest run of every node, kept in main memory, so that the next one goes on from where the two begin to differ.

Latents of all blocks are kept, and snapshots of the memory at some of them. What follows is equal, to the bit, to a run
from the beginning: the blocks since the snapshot are encoded again as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...salt.acceleration.transfers import to_main_memory
from ...salt.block_plan import ScheduleSource
from ...salt.conditioning import PromptSchedule
from ...salt.memory.snapshot import MemorySnapshot
from ...salt.noise import SeededNoise
from ..io_types import ClipMemory, Conditioning
from .rollout_plan import RolloutPlan

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

MAX_LATENT_BYTES = 2**30  # of a run
MAX_SNAPSHOT_BYTES = 2**30  # of a run
MAX_RUNS = 4  # of a MODEL, one of each node
SNAPSHOT_BLOCKS = 8  # from one to the next, besides those before a change of prompt and at the end

# By the MODEL on the wire, which ComfyUI keeps as long as the nodes before it are unchanged, then by node.
_runs: WeakKeyDictionary[ModelPatcher, dict[str, KeptRun]] = WeakKeyDictionary()


@dataclass
class KeptRun:
    """A run as far as it went. latents: of its new blocks, in the model's space. snapshots: by number of the block, as
    its memory was when the block was finished and not yet written."""

    plan: RolloutPlan
    latents: list[Tensor] = field(default_factory=list)
    snapshots: dict[int, list[MemorySnapshot]] = field(default_factory=dict)

    def add(self, latents: Tensor, memory: ClipMemory, ends: bool) -> None:
        """The next block. ends: whether the run ends after it."""
        index = len(self.latents)
        self.latents.append(to_main_memory(latents))
        if sum(x.numel() * x.element_size() for x in self.latents) > MAX_LATENT_BYTES:
            self.latents.clear()
            self.snapshots.clear()
            self.plan = replace(self.plan, size=(0, 0))  # like no other
        elif index in self.snapshots:
            return
        elif ends or index == 0 or self._changes_after(index) or (index + 1) % SNAPSHOT_BLOCKS == 0:
            self._take_snapshot(index, memory)

    def _changes_after(self, index: int) -> bool:
        starts = block_starts(self.plan)
        before, after = starts[index], starts[index + 1] if index + 1 < len(starts) else math.inf
        return any(before < change.frame <= after for change in self.plan.prompts)

    def _take_snapshot(self, index: int, memory: ClipMemory) -> None:
        slots = [m.store.nbytes * len(m.held) // m.store.slots for m in memory.branches if m.store is not None]
        if sum(slots) > MAX_SNAPSHOT_BYTES // 2:
            return
        self.snapshots[index] = [MemorySnapshot.of(branch) for branch in memory.branches]
        while sum(s.nbytes for each in self.snapshots.values() for s in each) > MAX_SNAPSHOT_BYTES:
            self.snapshots.pop(sorted(self.snapshots)[1])  # the first is small


@dataclass(frozen=True)
class Resumed:
    """What of an earlier run holds for this one. made: latents of unchanged blocks since the snapshot. snapshot: of
    every branch of the memory. run: with the unchanged blocks before the snapshot, to be added to."""

    made: list[Tensor]
    snapshot: list[MemorySnapshot]
    run: KeptRun

    @property
    def before(self) -> list[Tensor]:
        """Latents of the blocks before the snapshot."""
        return self.run.latents

    def restore(self, memory: ClipMemory) -> None:
        for snapshot, branch in zip(self.snapshot, memory.branches, strict=True):
            snapshot.restore(branch)


class KeptRuns:
    """The latest run of one node with one MODEL. node: its id; nothing is kept for ""."""

    def __init__(self, model: ModelPatcher, node: str) -> None:
        self.model, self.node = model, node

    def find(self, plan: RolloutPlan) -> Resumed | None:
        """The first blocks of `plan` that were made before; None where there are none."""
        run = _runs.get(self.model, {}).get(self.node)
        if run is None:
            return None
        unchanged = min(unchanged_blocks(run.plan, plan), len(run.latents))
        at = max((index for index in run.snapshots if index < unchanged), default=None)
        if at is None:
            return None
        snapshots = {index: snapshot for index, snapshot in run.snapshots.items() if index <= at}
        begun = KeptRun(plan, run.latents[:at], snapshots)
        return Resumed(run.latents[at:unchanged], run.snapshots[at], begun)

    def keep(self, run: KeptRun) -> None:
        """In place of the run before."""
        if not self.node or not run.latents:
            return
        runs = _runs.setdefault(self.model, {})
        runs.pop(self.node, None)
        runs[self.node] = replace(run, plan=replace(run.plan, vae=None, notes=()))
        while len(runs) > MAX_RUNS:
            runs.pop(next(iter(runs)))


def block_starts(plan: RolloutPlan) -> list[int]:
    """Latent frames at which the new blocks begin."""
    starts, start = [], plan.first_frame + plan.start_frames
    for length in plan.blocks:
        starts.append(start)
        start += length
    return starts


def unchanged_blocks(old: RolloutPlan, new: RolloutPlan) -> int:
    """How many of the first blocks of two plans for the same MODEL are made from the same inputs."""
    names = ("settings", "policy", "size", "seed", "batch", "strength")
    if any(getattr(old, n) != getattr(new, n) for n in names) or old.memory is not new.memory:
        return 0
    if not all(same(getattr(old, n), getattr(new, n)) for n in ("negative", "start", "given_frame", "history")):
        return 0
    clips = [None if p.source is None else p.source.latents for p in (old, new)]
    if not same(*clips):
        return 0
    sources = [
        ScheduleSource([PromptSchedule(p.prompts)], replace(p.settings, guidance=1.0), SeededNoise(0, 1, 1, 1, 1),
                       p.first_frame)
        for p in (old, new)
    ]  # fmt: skip
    known: dict[tuple[int, int], bool] = {}

    def same_prompt(a: Conditioning, b: Conditioning) -> bool:
        key = id(a), id(b)
        if key not in known:
            known[key] = same(a, b)
        return known[key]

    starts = [start for start, other in zip(block_starts(old), block_starts(new), strict=False) if start == other]
    for index, start in enumerate(starts):
        (a,), (b,) = (source(start).prompts for source in sources)
        if (a.switch, a.keep_sink) != (b.switch, b.keep_sink) or not same_prompt(a.conditioning, b.conditioning):
            return index
    return len(starts)


def same(a: object, b: object) -> bool:
    """Whether two inputs of nodes surely hold the same: numbers and texts by value, anything unknown by identity."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str) and type(a) is type(b):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and isinstance(a, (str, int, float, bool)) and a == b
