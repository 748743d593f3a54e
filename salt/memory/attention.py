"""One forward's view of a memory: which slots each block reads and writes, and the self-attention over them.

A host of the model (a diffusers student, a ComfyUI MODEL) calls `MemoryPass.attend` once per self-attention layer with
queries and keys before RoPE. Shapes: q, k, v and the result are [B, S, heads, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rope import Rotary, apply_rotary
from .fused import QKNorm, kernels_fit, read, write
from .policy import MemoryPolicy
from .store import MemoryGeometry, Store

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Segment:
    """One block within a forward. Slots of kept frames are in slot order, which is the order attention sums in."""

    frames: tuple[int, ...]
    writes: bool
    tokens: int
    block_slots: Tensor
    kept_slots: Tensor
    """Slots of the memory's kept frames [N], ascending."""
    read_slots: Tensor | int
    """Slots of kept frames and block together: a count where they are the first slots of the buffer, else indices."""
    rotary: Rotary
    """Of the block, for its queries (and its keys, unless positions are re-assigned)."""
    read_rotary: Rotary | None
    """Relative positions only: of `read_slots`, in their order."""
    joined_rotary: Rotary | None
    """Relative positions only: of kept frames, then the block."""


class MemoryPass:
    """What one forward of the model reads and writes of a memory; opened by `KVMemory.open`.

    An attention context (`salt.models.attention.AttentionContext`). policy, geometry, store: the memory's.
    freeze: keep what is read for a second forward of the same pass (gradient checkpointing).
    """

    by_layer: ClassVar[bool] = True

    def __init__(self, policy: MemoryPolicy, geometry: MemoryGeometry, store: Store, segments: list[Segment]) -> None:
        self.policy, self.geometry, self.store, self.segments = policy, geometry, store, segments
        self.freeze = False
        self._frozen: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @property
    def start_frame(self) -> int:
        """Latent frame at which the forward's first block starts."""
        return self.segments[0].frames[0]

    @property
    def frames(self) -> int:
        """Latent frames in this forward."""
        return sum(len(s.frames) for s in self.segments)

    def check(self, batch: int, frames: int, height: int, width: int) -> None:
        """Raise ValueError unless the model's input fits: batch size, latent frames, rows and columns of patches."""
        g = self.geometry
        found, expected = (batch, frames, height, width), (g.batch, self.frames, g.height, g.width)
        if found != expected:
            raise ValueError(
                f"memory pass: found (batch, frames, height, width in patches) = {found}, expected {expected}"
            )

    def takes_kernels(self, q: Tensor, k: Tensor, v: Tensor, norm: QKNorm) -> bool:
        """Whether `attend` can use fused kernels for these."""
        return kernels_fit(self.store, q, k, v, norm)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, norm: QKNorm | None = None
    ) -> Tensor:
        """Self-attention of all blocks of this forward over the memory and themselves, in order.

        norm: queries and keys have not been through their norms; fused kernels do this and the rest, where
        `takes_kernels`. Raises RuntimeError for a block that writes while gradient is on.
        """
        if len(self.segments) == 1:
            return self._attend(0, layer, q, k, v, attention, norm)
        sizes = [s.tokens for s in self.segments]
        parts = zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True)
        return torch.cat([self._attend(i, layer, *qkv, attention, norm) for i, qkv in enumerate(parts)], dim=1)

    def _attend(
        self, index: int, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, norm: QKNorm | None
    ) -> Tensor:
        if norm is not None:
            return attention(*self._by_kernels(index, layer, q, k, v, norm))
        segment, store = self.segments[index], self.store
        q = apply_rotary(q, segment.rotary)
        if not self.policy.relative:
            k = apply_rotary(k, segment.rotary)
        with_gradient = torch.is_grad_enabled()
        if segment.writes and with_gradient:
            raise RuntimeError("a context pass writes the memory and runs without gradient: wrap it in torch.no_grad()")
        if self._in_buffers(segment) and not with_gradient and k.dtype == store.dtype:
            store.put(layer, segment.block_slots, k, v)
            if isinstance(segment.read_slots, int):
                keys, values = store.view(layer, segment.read_slots)
            else:
                keys, values = store.gather(layer, segment.read_slots)
            rotary = segment.read_rotary
        elif not store.in_place and not with_gradient and k.dtype == store.dtype:
            keys, values = store.gather(layer, segment.kept_slots, reserve=segment.tokens, prefetch_next=index == 0)
            keys[:, -segment.tokens :], values[:, -segment.tokens :] = k, v
            rotary = segment.joined_rotary
            if segment.writes:
                store.put(layer, segment.block_slots, k, v)
        else:
            kept_k, kept_v = self._kept(index, layer)
            keys, values = torch.cat([kept_k.to(k.dtype), k], dim=1), torch.cat([kept_v.to(v.dtype), v], dim=1)
            rotary = segment.joined_rotary
            if segment.writes:
                store.put(layer, segment.block_slots, k, v)
        if rotary is not None:
            keys = apply_rotary(keys, rotary)
        return attention(q, keys, values)

    def _in_buffers(self, segment: Segment) -> bool:
        """Whether a block's keys and values are written beside those it reads. The buffers of a memory that is rebuilt
        have no place for a block that is only read."""
        return self.store.in_place and (segment.writes or not self.policy.rebuilt)

    def _by_kernels(
        self, index: int, layer: int, q: Tensor, k: Tensor, v: Tensor, norm: QKNorm
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What attention takes, by fused kernels: the same as in `_attend`, up to rounding. Without gradient."""
        segment, store, rotate = self.segments[index], self.store, not self.policy.relative
        if self._in_buffers(segment):
            q = write(store, layer, q, k, v, norm, segment.rotary, None, segment.block_slots, rotate)
            return q, *read(store, layer, segment.read_slots, segment.read_rotary)
        kept = read(store, layer, segment.kept_slots, segment.joined_rotary, segment.tokens, index == 0)
        slots = segment.block_slots if segment.writes else None
        return write(store, layer, q, k, v, norm, segment.rotary, kept, slots, rotate), *kept

    def _kept(self, index: int, layer: int) -> tuple[Tensor, Tensor]:
        """Kept keys and values; with `freeze`, those of the first forward even if the memory has been written since.

        Gradient checkpointing recomputes a block's forward during backward, after later blocks were written.
        """
        # Only the first block's slots may be prefetched: what later blocks read is written layer by layer in this pass.
        slots, prefetch_next = self.segments[index].kept_slots, index == 0
        is_rebuilt = self.policy.rebuilt and not self.segments[index].writes and not self.freeze
        if self.store.in_place and (self.policy.kind == "full" or is_rebuilt):
            return self.store.view(layer, slots.shape[0])  # frames of `full` are only ever added behind these
        if not self.freeze:
            return self.store.gather(layer, slots, prefetch_next=prefetch_next)
        if (index, layer) not in self._frozen:
            self._frozen[index, layer] = self.store.gather(layer, slots, prefetch_next=prefetch_next)
        return self._frozen[index, layer]
