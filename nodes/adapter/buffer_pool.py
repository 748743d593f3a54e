"""Buffers of memories between runs: pooled for the next run, or left on the device with a node's output.

A run puts the buffers of its own memory into a pool at its end and the next one takes them out, so they are never those
of a memory on a wire. ComfyUI does not know what stays on a device between runs: it may be a small share, and what is
not on a wire is freed with its model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from ...salt.memory import BufferPool, KVMemory
from ...salt.memory.store import Store
from ..io_types import ClipMemory

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

MAX_SHARE_OF_DEVICE = 1 / 8  # of a device's memory, between runs
_pools: WeakKeyDictionary[BaseModel, BufferPool] = WeakKeyDictionary()
_outputs: WeakSet[KVMemory] = WeakSet()  # on a wire, and on a device


def pool_of(patcher: ModelPatcher) -> BufferPool:
    """The buffers of memories of this MODEL that have ended; its clones have the same."""
    return _pools.setdefault(patcher.model, BufferPool(may_stay))


def memory_for_output(patcher: ModelPatcher, clip: ClipMemory) -> ClipMemory:
    """A run's own memory as a node's output: itself where it may stay between runs, else a copy in main memory."""
    branches = clip.branches
    if all(m.device.type == "cpu" for m in branches):
        return clip
    stores = [m.store for m in branches if m.store is not None]
    if clip.memory.policy.residence == "device" and may_stay(*stores):
        _outputs.update(branches)
        return clip
    copy = clip.copied("cpu")
    for memory in branches:
        pool_of(patcher).release(memory)
    return copy


def may_stay(*stores: Store) -> bool:
    """Whether buffers may stay where they are between runs: always in main memory, and on a device up to our share."""
    from comfy.model_management import get_total_memory

    device = stores[0].home
    if device.type == "cpu":
        return True
    on_wires = (memory.store for memory in _outputs if memory.store is not None)
    ours = {*stores, *on_wires, *(store for pool in _pools.values() for store in pool.stores)}
    used = sum(store.nbytes for store in ours if store.home == device)
    return used <= MAX_SHARE_OF_DEVICE * get_total_memory(device)
