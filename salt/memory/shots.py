"""Shots in a memory (LongLive 2.0): where each begins, which frames stay for it, and which slots its frames lie in.

The first block of a shot, at most as many frames as the sink has, is pinned when its context pass is done, in place of
the shot's before. Frames between sink and pin are evicted first; once the pin lies directly behind the sink, it stays.
Positions move on by the policy's offset with every shot. Plain integers; tensors live in `cache.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..io.fields import Index
from .policy import MemoryPolicy


@dataclass(frozen=True)
class Shot:
    """A shot. start: its first latent frame. pinned: frames from there on that are pinned; 0 before its first block is
    in the memory."""

    start: Index
    pinned: Index = 0


Shots = tuple[Shot, ...]


def begun(shots: Shots, frame: int, is_shot: bool) -> Shots:
    """The shots before latent frame `frame`, and one that starts there, where one does."""
    before = tuple(shot for shot in shots if shot.start < frame)
    return (*before, Shot(frame)) if is_shot else before


def written(shots: Shots, start: int, frames: int, sink: int) -> Shots:
    """After the context pass of a block: pinned where it is the first of its shot."""
    return tuple(replace(s, pinned=min(frames, sink)) if s.start == start else s for s in shots)


def shots_when_arrives(shots: Shots, frame: int) -> Shots:
    """The shots as they were when latent frame `frame` was written."""
    pinned = tuple(shot for shot in shots if shot.start + max(shot.pinned, 1) <= frame)
    return pinned + tuple(Shot(shot.start) for shot in shots if shot.start == frame)


def starts_at(shots: Shots, frame: int) -> bool:
    return any(shot.start == frame for shot in shots)


def positions(policy: MemoryPolicy, shots: Shots, frames: Sequence[int]) -> list[int]:
    """Temporal positions: the frame, and the offset once for every shot that began."""
    return [f + policy.shot_offset * sum(shot.start <= f for shot in shots) for f in frames]


def kept(policy: MemoryPolicy, held: tuple[int, ...], block: int, origin: int, shots: Shots) -> tuple[int, ...]:
    """The held frames, rising, that stay when a block of `block` frames arrives."""
    if policy.window is None:
        return held
    excess = len(held) + block - policy.window
    if excess <= 0:
        return held
    head = sum(f - origin < policy.sink for f in held)
    pinned = [shot for shot in shots if shot.pinned]
    if pinned and held[head : head + 1] == (pinned[-1].start,):
        head += sum(pinned[-1].start <= f < pinned[-1].start + pinned[-1].pinned for f in held)
    return held[:head] + held[head + excess :]


def kept_for_clean(policy: MemoryPolicy, held: tuple[int, ...], origin: int) -> tuple[int, ...]:
    """What the context pass of a shot's first block sees with `clean`: the sink alone."""
    return tuple(f for f in held if f - origin < policy.sink)


def placed(slots: Mapping[int, int], kept: Iterable[int], block: Sequence[int]) -> dict[int, int]:
    """Slot of every frame: kept ones stay where they are, the block takes the lowest that are free."""
    found = {frame: slots[frame] for frame in kept}
    taken, free = set(found.values()), 0
    for frame in block:
        while free in taken:
            free += 1
        found[frame] = free
        taken.add(free)
    return found
