"""Buffers of a memory that no longer exists, kept for the next run of the same kind.

A run puts them here at its end and the next one takes them out, so they are never those of a memory on a wire.
ComfyUI does not know what stays on a device between runs: it may be a small share, and what is not on a wire is freed
with its model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

import torch

from ...salt.memory import KVMemory
from ..io_types import ClipMemory

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

MAX_SHARE_OF_DEVICE = 1 / 8  # of a device's memory, between runs
MAX_POOLED_MEMORIES = 2  # per model: guidance has two
_pooled: WeakKeyDictionary[BaseModel, list[KVMemory]] = WeakKeyDictionary()
_outputs: WeakSet[KVMemory] = WeakSet()  # on a wire, and on a device


def kind(memory: KVMemory) -> tuple[object, ...]:
    return memory.policy, memory.geometry, memory.dtype, memory.device


def assign_buffers(patcher: ModelPatcher, memory: KVMemory, frames: int) -> bool:
    """Give an empty memory of a clip of `frames` the pooled buffers that fit it exactly, if there are any.

    Their content is never read: a slot is written before it counts as held.
    """
    pooled = _pooled.get(patcher.model, [])
    for i, ended in enumerate(pooled):
        store = ended.store
        if store is None or kind(ended) != kind(memory) or store.slots != memory.policy.slots(frames):
            continue
        if store.buffers[0][0].is_inference() and not torch.is_inference_mode_enabled():
            continue  # which could not write into them
        memory.store = pooled.pop(i).store
        return True
    return False


def memory_for_output(patcher: ModelPatcher, clip: ClipMemory) -> ClipMemory:
    """A run's own memory as a node's output: itself where it may stay between runs, else a copy in main memory."""
    branches = clip.branches
    if all(m.device.type == "cpu" for m in branches):
        return clip
    if clip.memory.policy.residence == "device" and may_stay(*branches):
        _outputs.update(branches)
        return clip
    copy = clip.copied("cpu")
    for memory in branches:
        release_buffers(patcher, memory)
    return copy


def release_buffers(patcher: ModelPatcher, memory: KVMemory) -> None:
    """At the end of a run, put the buffers of a memory that nobody else holds into the pool; older ones are freed."""
    if memory.store is None:
        return
    ended = memory.empty_like()
    ended.store, memory.store = memory.store, None
    others = [m for m in _pooled.get(patcher.model, []) if kind(m) == kind(ended)][: MAX_POOLED_MEMORIES - 1]
    _pooled[patcher.model] = others
    if may_stay(ended):
        _pooled[patcher.model] = [ended, *others]


def may_stay(*memories: KVMemory) -> bool:
    """Whether memories of one kind may stay where they are between runs: always in main memory, and on a device up to
    our share of it."""
    from comfy.model_management import get_total_memory

    (first, *_) = memories
    if first.device.type == "cpu" or first.policy.residence == "cpu":
        return True
    ours = {*memories, *_outputs, *(m for pooled in _pooled.values() for m in pooled)}
    used = sum(m.nbytes for m in ours if m.device == first.device and m.policy.residence == "device")
    return used <= MAX_SHARE_OF_DEVICE * get_total_memory(first.device)
