"""What a live session keeps of its past: blocks as a tree, their latents, and snapshots, within a budget of bytes.

Every kept block points to the one before it, and a branch is its latest block. The state after a block (memory and
decoder) is rebuilt from the nearest snapshot before it, by context passes of the blocks in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..acceleration.free_memory import free_bytes
from ..block_plan import RolloutSettings
from ..errors import InputError
from ..memory.snapshot import MemorySnapshot
from .steering import BlockChoice, Steering

if TYPE_CHECKING:
    from ..models.streaming_vae import FrameDecoder

SNAPSHOT_BLOCKS = 4  # from one to the next, before the budget thins them out
LEAST_BUDGET = 2**27  # bytes, of a session that was given none
DEFAULT_SNAPSHOTS = 8  # that the budget of such a session holds, where the machine has the memory
FULL_SHARE = 0.9  # of the budget, to which it is brought down when it is exceeded


@dataclass(frozen=True)
class Snapshot:
    """Memory, unconditional memory (None where it does not follow) and decoder after a block."""

    memory: MemorySnapshot
    negative: MemorySnapshot | None
    decoder: FrameDecoder | None

    @property
    def nbytes(self) -> int:
        decoder = 0 if self.decoder is None else self.decoder.nbytes
        return self.memory.nbytes + (0 if self.negative is None else self.negative.nbytes) + decoder


@dataclass(frozen=True)
class Denoising:
    """What makes a block again, to the same bits, besides its `BlockChoice`. settings: of its steps. begins: the noised
    latents [1, C, F, H, W] in main memory that it began with; None where they are the noise of its seed."""

    settings: RolloutSettings
    begins: Tensor | None


def nbytes(latents: Tensor | None) -> int:
    return 0 if latents is None else latents.numel() * latents.element_size()


@dataclass(eq=False)
class KeptBlock:
    """A block that was made. number: of all that the session made; index: along its branch, from 0.

    start, stop: latent frames. scene: latent frame at which its scene begins (0, or the latest cut). steering: after
    it. latents: [1, C, F, H, W] in main memory. cut_off: blocks before it are no longer kept. given: it is of the clip
    that the session goes on from, and its snapshot is kept as long as the blocks after it. denoising: how it is made
    again, where its last step wrote the memory; None where a context pass of its latents did. is_start: its latents
    were not generated.
    """

    number: int
    index: int
    start: int
    stop: int
    scene: int
    choice: BlockChoice
    steering: Steering
    latents: Tensor
    previous: KeptBlock | None
    snapshot: Snapshot | None = None
    cut_off: bool = False
    given: bool = False
    denoising: Denoising | None = None
    is_start: bool = False

    @property
    def nbytes(self) -> int:
        return nbytes(self.latents) + (0 if self.denoising is None else nbytes(self.denoising.begins))

    def back(self) -> Iterator[KeptBlock]:
        """This block and those before it that are kept, latest first."""
        block: KeptBlock | None = self
        while block is not None:
            yield block
            block = block.previous


def path_to(block: KeptBlock) -> list[KeptBlock] | None:
    """The blocks to be repeated for the state after `block`, oldest first: they follow a block with a snapshot, or the
    clip's beginning. None where too little is kept."""
    path: list[KeptBlock] = []
    for each in block.back():
        if each.snapshot is not None:
            return path[::-1] if _history_is_kept(path) else None
        path.append(each)
        if each.cut_off:
            return None
    return path[::-1]


def _history_is_kept(path: Iterable[KeptBlock]) -> bool:
    """Whether the latents that blocks of a path encode again are there."""
    return all(latents_before(b.previous, b.choice, b.start) is not None for b in path if encodes_again(b))


def encodes_again(block: KeptBlock) -> bool:
    """Whether recent latents are encoded again before a block."""
    return needs_history(block.choice, None if block.previous is None else block.previous.choice)


def needs_history(choice: BlockChoice, before: BlockChoice | None) -> bool:
    if before is None or choice.switch == "cut":
        return False
    guided = choice.guidance != 1.0 and before.guidance == 1.0
    return choice.switch == "recache" or choice.policy != before.policy or guided


def latents_before(block: KeptBlock | None, choice: BlockChoice, start: int) -> list[Tensor] | None:
    """The clean latents of the last blocks before latent frame `start`, oldest first, as many as the policy's memory is
    written from, within the scene. None where they are no longer kept."""
    window = math.inf if choice.policy.reach is None else choice.policy.reach
    found: list[Tensor] = []
    scene = 0 if block is None else block.scene
    for each in block.back() if block is not None else ():
        if each.stop <= scene or start - each.start > window:
            return found[::-1]
        if each.latents.shape[2]:
            found.append(each.latents)
        if each.cut_off and each.start > scene and start - each.start < window:
            return None
    return found[::-1]


def default_budget(memory_bytes: int) -> int:
    """Bytes of main memory for a session whose memory takes `memory_bytes`: enough for some snapshots of it, but at
    most a quarter of what is free, and at least 128 MiB."""
    free = free_bytes(torch.device("cpu"))
    return max(LEAST_BUDGET, min(DEFAULT_SNAPSHOTS * memory_bytes, free // 4))


class History:
    """Keeps latents and snapshots within `budget` bytes, newest and evenly spaced ones first.

    Latents have up to half of it, snapshots what latents leave.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.latent_bytes = self.snapshot_bytes = 0

    @property
    def latent_budget(self) -> int:
        return self.budget // 2

    @property
    def snapshot_budget(self) -> int:
        return self.budget - min(self.latent_bytes, self.latent_budget)

    def add(self, block: KeptBlock) -> None:
        self.latent_bytes += block.nbytes

    def add_snapshot(self, block: KeptBlock, snapshot: Snapshot) -> None:
        block.snapshot = snapshot
        self.snapshot_bytes += snapshot.nbytes

    def has_room(self, nbytes: int) -> bool:
        """Whether a snapshot of so many bytes can be kept at all."""
        return nbytes <= self.snapshot_budget

    @property
    def exceeded(self) -> bool:
        return self.latent_bytes > self.latent_budget or self.snapshot_bytes > self.snapshot_budget

    def trim(self, tips: Iterable[KeptBlock], always: int) -> None:
        """Drop what exceeds the budget: the oldest latents, and snapshots whose neighbours are nearest.

        tips: the latest blocks of everything that is still wanted. always: so many of the latest blocks keep their
        latents whatever the budget.
        """
        blocks = sorted({b.number: b for tip in tips for b in tip.back()}.values(), key=lambda b: b.number)
        self.latent_bytes = sum(b.nbytes for b in blocks)
        dropped: set[int] = set()
        if self.latent_bytes > self.latent_budget:
            for block in blocks[: max(len(blocks) - always, 0)]:
                if self.latent_bytes <= self.latent_budget * FULL_SHARE:
                    break
                self.latent_bytes -= block.nbytes
                dropped.add(block.number)
        kept = [b for b in blocks if b.number not in dropped]
        for block in kept:
            if block.previous is not None and block.previous.number in dropped:
                block.previous, block.cut_off = None, True
        self._thin([b for b in kept if b.snapshot is not None and not b.given])

    def _thin(self, blocks: list[KeptBlock]) -> None:
        sizes = [b.snapshot.nbytes for b in blocks if b.snapshot is not None]
        self.snapshot_bytes = sum(sizes)
        while self.snapshot_bytes > self.snapshot_budget and blocks:
            newest = blocks[-1].number
            gaps = [
                (after - before) / (1 + newest - block.number)
                for before, block, after in zip(
                    [0, *(b.number for b in blocks)],
                    blocks,
                    [*(b.number for b in blocks[1:]), newest + SNAPSHOT_BLOCKS],
                    strict=False,
                )
            ]
            least = gaps.index(min(gaps))
            blocks.pop(least).snapshot = None
            self.snapshot_bytes -= sizes.pop(least)


def check_reachable(block: KeptBlock, earliest: float) -> None:
    """Raise InputError unless the state after a block can be rebuilt. earliest: seconds to which it can."""
    if path_to(block) is None:
        raise InputError("seconds", f"found a moment that is no longer kept, expected {earliest:g} s or later")
