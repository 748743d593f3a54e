"""One forward's view of a memory: which slots each block reads and writes, and the attention that does it.

Whoever hosts the model (a diffusers student, a ComfyUI MODEL) calls `MemoryPass.attend` once per self-attention layer
with keys and queries before RoPE. Shapes: q, k, v and the result are [B, S, heads, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..rope import Rotary, apply_rotary, rotary_table
from .store import Store

if TYPE_CHECKING:
    from .cache import KVMemory

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

# Every step of a block asks for the same tables; a handful of geometries is alive at a time. Kept tables must serve
# training as well as inference.
_table = lru_cache(maxsize=32)(torch.inference_mode(False)(rotary_table))


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

    @classmethod
    def plan(cls, memory: KVMemory, kept: tuple[int, ...], block: tuple[int, ...], writes: bool) -> Segment:
        g, policy = memory.geometry, memory.policy
        by_slot = sorted(kept, key=memory.slot)
        together = sorted(kept + block, key=memory.slot)
        slots = [memory.slot(f) for f in together]

        def table(positions: list[int]) -> Rotary:
            return _table(tuple(positions), g.height, g.width, g.head_dim, memory.device)

        block_positions = list(policy.block_positions(block[0], len(block), len(kept)))
        rank = {f: i for i, f in enumerate(sorted(kept) + list(block))}
        return cls(
            frames=block,
            writes=writes,
            tokens=len(block) * g.tokens,
            block_slots=memory.slot_index(block),
            kept_slots=memory.slot_index(by_slot),
            read_slots=len(slots) if slots == list(range(len(slots))) else memory.slot_index(together),
            rotary=table(block_positions),
            read_rotary=table([rank[f] for f in together]) if policy.relative else None,
            joined_rotary=table([rank[f] for f in by_slot] + block_positions) if policy.relative else None,
        )


class MemoryPass:
    """What one forward of the model sees of a memory. Made by `KVMemory.open`. A scope of `salt.models.attention`."""

    by_layer: ClassVar[bool] = True

    def __init__(self, memory: KVMemory, store: Store, segments: list[Segment]) -> None:
        self.memory, self.store, self.segments = memory, store, segments
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
        """Raise ValueError if the model's input does not fit: batch, latent frames, patch rows and columns."""
        g = self.memory.geometry
        found, expected = (batch, frames, height, width), (g.batch, self.frames, g.height, g.width)
        if found != expected:
            raise ValueError(
                f"memory pass: found (batch, frames, height, width in patches) = {found}, expected {expected}"
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """Self-attention of all blocks of this forward over memory and themselves, in order."""
        if len(self.segments) == 1:
            return self._attend(0, layer, q, k, v, attention)
        sizes = [s.tokens for s in self.segments]
        parts = zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True)
        return torch.cat([self._attend(i, layer, *qkv, attention) for i, qkv in enumerate(parts)], dim=1)

    def _attend(self, index: int, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        segment, store = self.segments[index], self.store
        relative = self.memory.policy.relative
        q = apply_rotary(q, segment.rotary)
        if not relative:
            k = apply_rotary(k, segment.rotary)
        with_gradient = torch.is_grad_enabled()
        if segment.writes and with_gradient:
            raise RuntimeError("a context pass writes the memory and runs without gradient: wrap it in torch.no_grad()")
        if store.in_place and not with_gradient and k.dtype == store.dtype:
            store.put(layer, segment.block_slots, k, v)
            if isinstance(segment.read_slots, int):
                keys, values = store.view(layer, segment.read_slots)
            else:
                keys, values = store.gather(layer, segment.read_slots)
            rotary = segment.read_rotary
        elif store.precision != "model" and not with_gradient and k.dtype == store.dtype:
            keys, values = store.gather(layer, segment.kept_slots, room=segment.tokens, ahead=index == 0)
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

    def _kept(self, index: int, layer: int) -> tuple[Tensor, Tensor]:
        """Kept keys and values; with `freeze`, the ones of the first forward even if the memory has moved on.

        Gradient checkpointing recomputes a block's forward during backward, after later blocks were written.
        """
        # What later blocks read may be of blocks before them, which this forward writes layer by layer.
        slots, ahead = self.segments[index].kept_slots, index == 0
        if self.store.in_place and self.memory.policy.kind == "full":
            return self.store.view(layer, slots.shape[0])  # frames are only ever added behind these
        if not self.freeze:
            return self.store.gather(layer, slots, ahead=ahead)
        if (index, layer) not in self._frozen:
            self._frozen[index, layer] = self.store.gather(layer, slots, ahead=ahead)
        return self._frozen[index, layer]

    def commit(self, context_sigma: float = 0.0) -> None:
        """After the forward: what the writing blocks left behind is memory from now on."""
        memory = self.memory
        if self.start_frame != memory.next_frame:
            raise ValueError(f"commit: the memory stands at frame {memory.next_frame}, expected {self.start_frame}")
        for segment in self.segments:
            if segment.writes:
                kept = memory.policy.kept(memory.held, len(segment.frames), memory.origin)
                memory.held = kept + segment.frames
                memory.next_frame = segment.frames[-1] + 1
        memory.context_sigma = context_sigma
