"""Snapshots of a memory: the kept frames in main memory, from which it is restored later, exactly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..acceleration.transfers import to_main_memory
from .cache import KVMemory
from .clean_latents import EMPTY, CleanLatents
from .far import FarContext, FarMemory
from .overwritten import OverwriteState
from .policy import MemoryPolicy
from .shots import Shots


@dataclass(frozen=True)
class MemorySnapshot:
    """What a memory held at one moment. layers: for every layer the kept slots of its buffers, in main memory. clean,
    overwritten, far: of the memory, also there."""

    policy: MemoryPolicy
    origin: int
    next_frame: int
    held: tuple[int, ...]
    context_sigma: float
    shots: Shots
    slots: dict[int, int]
    layers: tuple[tuple[Tensor, ...], ...]
    clean: CleanLatents = EMPTY
    overwritten: OverwriteState = OverwriteState()
    far: FarContext = FarContext()

    @classmethod
    def of(cls, memory: KVMemory) -> MemorySnapshot:
        """A copy of what is kept; the host does not wait for the device."""
        layers: tuple[tuple[Tensor, ...], ...] = ()
        if memory.store is not None and memory.held:
            index = memory.slot_index(memory.held)
            layers = tuple(
                tuple(to_main_memory(buffer.index_select(1, index.to(buffer.device))) for buffer in layer)
                for layer in memory.store.buffers
            )
        clean = memory.clean.in_main_memory()
        far = memory.context.map(to_main_memory) if isinstance(memory, FarMemory) else FarContext()
        return cls(
            memory.policy, memory.origin, memory.next_frame, memory.held, memory.context_sigma, memory.shots,
            dict(memory.slots), layers, clean, memory.overwritten, far,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        kept = sum(t.numel() * t.element_size() for layer in self.layers for t in layer)
        return self.clean.nbytes + self.far.nbytes + kept

    def restore(self, memory: KVMemory) -> None:
        """Put it into a memory of the same model and size, in place of what that holds."""
        memory.renew(self.next_frame, self.policy)
        memory.origin, memory.held, memory.context_sigma = self.origin, self.held, self.context_sigma
        memory.clean, memory.overwritten = self.clean.to(memory.device), self.overwritten
        memory.shots, memory.slots = self.shots, dict(self.slots)
        if isinstance(memory, FarMemory):
            memory.context = self.far.to(memory.device)
        if not self.layers:
            return
        index = memory.slot_index(self.held)
        for layer, kept in zip(memory.allocated(self.next_frame).buffers, self.layers, strict=True):
            for buffer, part in zip(layer, kept, strict=True):
                buffer.index_copy_(1, index.to(buffer.device), part.to(buffer.device, non_blocking=True))
