"""Pools of buffers: the stores of memories that are no longer used, for new memories of the same kind.

Allocating them anew costs time, and a recorded CUDA graph reads a store at its address.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from .cache import KVMemory
from .store import Store

MAX_STORES = 2  # guidance has two branches


class BufferPool:
    """The latest stores that were released, all of one kind (policy, geometry, dtype, device), two at most.

    `assign_buffers` and `release` are for an owner that knows when a memory ends; `lend_buffers` returns the store by
    itself once the memory has been garbage-collected. What a pooled store contains is never read: a slot is written
    before its frame counts as held. fits: whether a store may be pooled, called when one is released (a byte budget,
    say); a store that may not is freed.
    """

    def __init__(self, fits: Callable[[Store], bool] = lambda store: True) -> None:
        self.fits = fits
        self.stores: list[Store] = []
        self._kind: tuple[object, ...] = ()

    def assign_buffers(self, memory: KVMemory, frames: int) -> bool:
        """Give an empty memory, for a clip of `frames` latent frames, a pooled store of exactly its size.

        Returns whether there was one.
        """
        if self._kind != _kind(memory) or memory.policy.keeps_last_step:  # whose empty slots are read as zeros
            return False
        for i, store in enumerate(self.stores):
            inference_only = store.buffers[0][0].is_inference() and not torch.is_inference_mode_enabled()
            if store.slots == memory.policy.slots(frames) and not inference_only:
                memory.store = self.stores.pop(i)
                return True
        return False

    def release(self, memory: KVMemory) -> None:
        """Take the store of a memory that is not used any more, with its frames. Stores of another kind are freed."""
        if memory.store is not None:
            store, memory.store = memory.store, None
            self._add(_kind(memory), store)

    def lend_buffers(self, memory: KVMemory) -> None:
        """Give an empty memory a pooled store or a new one, which comes back when the memory is garbage-collected.

        Only for policies with a window: a full memory's buffers have no fixed size, and it stays as it is.
        """
        window = memory.policy.window
        if window is None:
            return
        self.assign_buffers(memory, window)
        store = memory.allocated(memory.origin + window)
        weakref.finalize(memory, self._add, _kind(memory), store).atexit = False

    def _add(self, kind: tuple[object, ...], store: Store) -> None:
        self.stores = self.stores[: MAX_STORES - 1] if kind == self._kind else []
        self._kind = kind
        if self.fits(store):
            self.stores.insert(0, store)


def _kind(memory: KVMemory) -> tuple[object, ...]:
    return memory.policy, memory.geometry, memory.dtype, memory.device
