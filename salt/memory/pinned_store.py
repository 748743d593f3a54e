"""Storage of a memory in main memory, for a model on a GPU (residence `cpu`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..acceleration.cuda_streams import side_stream
from .policy import MemoryPolicy
from .store import MemoryGeometry, Store


class PinnedStore(Store):
    """Buffers in pinned main memory. Layers are copied to the device ahead of their use, straight out of the buffers,
    and what a context pass writes is copied straight into them; the host waits for neither.

    All copies are on one side stream, in order, so that a slot is never read before it is written. `buffers` waits for
    them, for whoever reads or writes the buffers on the host.
    """

    def __init__(
        self, policy: MemoryPolicy, geometry: MemoryGeometry, dtype: torch.dtype, device: torch.device, slots: int
    ) -> None:
        super().__init__(policy, geometry, dtype, device, slots)
        self._stream = side_stream(device, "fetch")
        self._copying = False
        # Keyed by the id of the slots, which are kept alive here so that no other tensor gets the same id.
        self._fetched: dict[tuple[int, int], tuple[Tensor, tuple[Tensor, ...], torch.cuda.Event]] = {}

    @property
    def in_place(self) -> bool:
        return False

    @property
    def buffers(self) -> list[tuple[Tensor, ...]]:
        if self._copying:
            self._stream.synchronize()
            self._copying = False
        return self._buffers

    def write_parts(self, layer: int, slots: Tensor, parts: list[Tensor]) -> None:
        runs = contiguous_runs(slots.tolist())
        sources = [part.to(buffer.dtype).contiguous() for buffer, part in zip(self._buffers[layer], parts, strict=True)]
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        self._copying = True
        with torch.cuda.stream(self._stream):
            for buffer, source in zip(self._buffers[layer], sources, strict=True):
                for row in range(self.geometry.batch):  # of one row, neighbouring slots are one piece of memory
                    for at, slot, count in runs:
                        target = buffer[row, slot : slot + count]
                        target.copy_(source[row, at : at + count], non_blocking=True)
                if source.is_cuda:
                    source.record_stream(self._stream)

    def take_parts(self, layer: int, slots: Tensor, reserve: int, prefetch_next: bool) -> tuple[Tensor, ...]:
        _, parts, event = self._fetched.pop((layer, id(slots)), None) or self._fetch(layer, slots, reserve)
        current = torch.cuda.current_stream(self.device)
        event.wait(current)
        for t in parts:
            t.record_stream(current)
        if prefetch_next and layer + 1 < self.geometry.layers:
            self._fetched = {(layer + 1, id(slots)): self._fetch(layer + 1, slots, reserve)}
        return parts

    def _fetch(self, layer: int, slots: Tensor, reserve: int) -> tuple[Tensor, tuple[Tensor, ...], torch.cuda.Event]:
        """Start the copy of one layer to the device on the side stream, concurrent with computation."""
        runs = contiguous_runs(slots.tolist())
        # Codes are dequantised into another tensor, which has the room.
        frames = slots.shape[0] + (reserve // self.geometry.tokens if self.precision == "model" else 0)
        self._copying = True
        with torch.cuda.stream(self._stream):
            parts: list[Tensor] = []
            for buffer in self._buffers[layer]:
                shape = (buffer.shape[0], frames, *buffer.shape[2:])
                part = torch.empty(shape, dtype=buffer.dtype, device=self.device)
                for row in range(shape[0]):
                    for at, slot, count in runs:
                        part[row, at : at + count].copy_(buffer[row, slot : slot + count], non_blocking=True)
                parts.append(part)
            event = torch.cuda.Event()
            event.record(self._stream)
        return slots, tuple(parts), event


def contiguous_runs(slots: list[int]) -> list[tuple[int, int, int]]:
    """Pieces (place in the list, first slot, slots) of which each covers neighbouring slots in order."""
    runs: list[tuple[int, int, int]] = []
    for at, slot in enumerate(slots):
        if runs and slot == runs[-1][1] + runs[-1][2]:
            first, start, count = runs[-1]
            runs[-1] = (first, start, count + 1)
        else:
            runs.append((at, slot, 1))
    return runs


def new_store(
    policy: MemoryPolicy, geometry: MemoryGeometry, dtype: torch.dtype, device: torch.device, slots: int
) -> Store:
    """The store that a policy's residence asks for."""
    kind = PinnedStore if policy.residence == "cpu" and device.type == "cuda" else Store
    return kind(policy, geometry, dtype, device, slots)
