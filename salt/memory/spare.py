"""Buffers of memories that nobody holds any more, for the next clip: recorded forwards read them where they lie."""

from __future__ import annotations

import weakref

import torch

from .cache import KVMemory
from .storage import Store


class SpareStores:
    """The store of the latest windowed memory that has died; a memory that somebody holds keeps its own."""

    def __init__(self) -> None:
        self._spare: tuple[tuple, Store] | None = None

    def furnish(self, memory: KVMemory) -> None:
        """Give an empty memory a store: the spare one if it fits exactly, else one of its own.

        What a spare store still contains is never read: a slot is written before its frame counts as held.
        """
        policy = memory.policy
        if policy.window is None:
            return
        kind = (policy, memory.geometry, memory.dtype, memory.device, torch.is_inference_mode_enabled())
        if self._spare is not None and self._spare[0] == kind:
            memory.store, self._spare = self._spare[1], None
        store = memory.allocated(memory.origin + policy.window)
        weakref.finalize(memory, self._keep, kind, store).atexit = False

    def _keep(self, kind: tuple, store: Store) -> None:
        self._spare = kind, store
