"""Branches of a live session: which blocks belong to them, where they come from, and the prompts along them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .history import KeptBlock
from .steering import BlockChoice, Steering

MAX_BRANCHES = 64
MAX_BOOKMARKS = 128


@dataclass(frozen=True)
class ChoiceFrom:
    """From latent frame `start` on, blocks are made by `choice`; what it says of a switch is for the first alone."""

    start: int
    choice: BlockChoice


@dataclass
class LiveBranch:
    """A branch. fork_start: latent frame at which it leaves its parent. tip: its latest block, None at the clip's
    beginning. steering: of its next block. changes: where its blocks began to be made in another way."""

    id: int
    parent: int | None
    fork_start: int
    tip: KeptBlock | None
    steering: Steering
    changes: list[ChoiceFrom] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Latent frame at which its next block begins."""
        return 0 if self.tip is None else self.tip.stop

    @property
    def blocks(self) -> int:
        return 0 if self.tip is None else self.tip.index + 1

    def add(self, block: KeptBlock) -> None:
        self.tip, self.steering = block, block.steering
        if not self.changes or self.changes[-1].choice != block.choice or block.choice.switch != "keep":
            self.changes.append(ChoiceFrom(block.start, block.choice))

    def rewind(self, tip: KeptBlock | None, steering: Steering) -> None:
        """Drop what comes after `tip`; steering: after it."""
        self.tip, self.steering = tip, steering
        self.changes = [c for c in self.changes if c.start < self.end]
        self.fork_start = min(self.fork_start, self.end)

    def block_before(self, start: int) -> KeptBlock | None:
        """The latest block that ends at latent frame `start` or before; None at the clip's beginning."""
        return next((b for b in self.tip.back() if b.stop <= start), None) if self.tip is not None else None


@dataclass(frozen=True)
class PlaceBookmark:
    """id, name: as viewers see them. branch: its id. tip: the block after which it is."""

    id: int
    name: str
    branch: int
    tip: KeptBlock | None
    end: int
