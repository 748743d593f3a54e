"""Host 1: the buffers of a memory that nobody holds any more, kept for the next run of the same kind.

They are put here only by the run that owned them, at its end, and are taken out by the next, so they are never those of
a memory on a wire. Core knows nothing of what stays on a device between runs: it may be a small share, and what is not
on a wire goes with its model.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from ...salt.memory import KVMemory
from ..io_types import ClipMemory

SHARE = 8  # of a device's memory, one part may be ours between runs
KEPT = 2  # memories per model: guidance has two
_spare: WeakKeyDictionary[Any, list[KVMemory]] = WeakKeyDictionary()
_resting: WeakSet[KVMemory] = WeakSet()


def kind(memory: KVMemory) -> tuple[Any, ...]:
    return memory.policy, memory.geometry, memory.dtype, memory.device


def furnish(patcher: Any, memory: KVMemory, frames: int) -> bool:
    """Give an empty memory of a clip of `frames` the buffers of one that ended, if there are any that fit exactly.

    What they hold is never read: a slot is written before it counts as held.
    """
    spare = _spare.get(patcher.model, [])
    for i, ended in enumerate(spare):
        store = ended.store
        if store is None or kind(ended) != kind(memory) or store.slots != memory.policy.slots(frames):
            continue
        if store.buffers[0][0].is_inference() and not torch.is_inference_mode_enabled():
            continue  # which could not write into them
        memory.store = spare.pop(i).store
        return True
    return False


def at_rest(patcher: Any, clip: ClipMemory) -> ClipMemory:
    """A run's own memory for the wire: itself where it may stay between runs, else a copy in main memory."""
    branches = [m for m in (clip.memory, clip.negative) if m is not None]
    if all(m.device.type == "cpu" for m in branches):
        return clip
    if clip.memory.policy.residence == "device" and stays(*branches):
        _resting.update(branches)
        return clip
    copy = clip.rested()
    for memory in branches:
        leave(patcher, memory)
    return copy


def leave(patcher: Any, memory: KVMemory) -> None:
    """At the end of a run: `memory` is held by nobody else, and its buffers are free. Older ones give way."""
    if memory.store is None:
        return
    ended = memory.empty_like()
    ended.store, memory.store = memory.store, None
    others = [m for m in _spare.get(patcher.model, []) if kind(m) == kind(ended)][: KEPT - 1]
    _spare[patcher.model] = others
    if stays(ended):
        _spare[patcher.model] = [ended, *others]


def stays(*memories: KVMemory) -> bool:
    """Whether memories of one kind may stay where they are between runs: in main memory always, on a device within
    our share."""
    from comfy.model_management import get_total_memory

    (first, *_) = memories
    if first.device.type == "cpu" or first.policy.residence == "cpu":
        return True
    ours = {*memories, *_resting, *(m for spare in _spare.values() for m in spare)}
    there = sum(m.nbytes for m in ours if m.device == first.device and m.policy.residence == "device")
    return there * SHARE <= get_total_memory(first.device)
