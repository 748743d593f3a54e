"""Buffers of memories that nobody holds any more, for the next clip: recorded forwards read them where they lie."""

from __future__ import annotations

import weakref

import torch

from .cache import KVMemory
from .store import Store


class BufferPool:
    """The stores of the latest windowed memories of one kind that have died, two at most (guidance has two).

    A memory that somebody holds keeps its own.
    """

    def __init__(self) -> None:
        self._kind: tuple = ()
        self._spare: list[Store] = []

    def furnish(self, memory: KVMemory) -> None:
        """Give an empty memory a store: a spare one if it fits exactly, else one of its own.

        What a spare store still contains is never read: a slot is written before its frame counts as held.
        """
        policy = memory.policy
        if policy.window is None:
            return
        kind = (policy, memory.geometry, memory.dtype, memory.device, torch.is_inference_mode_enabled())
        if self._spare and self._kind == kind:
            memory.store = self._spare.pop()
        store = memory.allocated(memory.origin + policy.window)
        weakref.finalize(memory, self._keep, kind, store).atexit = False

    def _keep(self, kind: tuple, store: Store) -> None:
        older = self._spare[-1:] if kind == self._kind else []
        self._kind, self._spare = kind, [*older, store]
