"""A memory of fixed slots that are overwritten in an order of their own, with a sink that changes (StreamDiffusionV2).

Every slot holds one frame, and all filled slots are read. No clean pass writes it: what stays of a block are the keys
and values of its last denoising step. Slots fill in order; once all are full, each block takes the slot at the front of
a queue. Slots behind the sink go back to the end of the queue, those of the sink do not. Before a block of one frame is
read, its keys and values are compared with every sink slot's (cosine of their means over tokens); where the least
similarity is below the policy's `refresh`, that slot goes to the front of the queue, and so is overwritten next.

The queue is every layer's and every clip's own, and its decisions are taken on the host, which waits for the device.
Source: StreamDiffusionV2, streaming video to video (Apache-2.0), described in its own terms here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..io.fields import Between, Index
from ..rope import Rotary, apply_rotary, cached_rotary_table
from .attention import Attention, MemoryPass, Segment
from .policy import MemoryPolicy
from .store import MemoryGeometry, Store

# What a segment of other memories says; this one decides in every layer.
NO_SLOTS, NO_ROTARY = torch.zeros(0, dtype=torch.int64), Rotary(torch.zeros(0), torch.zeros(0))
Queue = tuple[Annotated[int, Between(1, 10**6)], ...]  # ends of slots, in frames: slot 0 is 1


@dataclass(frozen=True)
class OverwriteState:
    """Which slots come next. Lists have an entry for each clip of the batch.

    filled: slots in use. ends: position behind the latest block. left: denoising steps of a block until it leaves its
    slot, 0 before the first block. queues: for every layer and clip, ends of the slots that are overwritten next.
    """

    filled: tuple[Index, ...] = ()
    ends: tuple[Index, ...] = ()
    left: tuple[Index, ...] = ()
    queues: tuple[tuple[Queue, ...], ...] = ()

    @classmethod
    def empty(cls, geometry: MemoryGeometry) -> OverwriteState:
        none = (0,) * geometry.batch
        return cls(none, none, none, (((),) * geometry.batch,) * geometry.layers)

    def repeated(self, rows: int) -> OverwriteState:
        """The state of one clip, `rows` times."""
        queues = tuple(layer * rows for layer in self.queues)
        return OverwriteState(self.filled * rows, self.ends * rows, self.left * rows, queues)

    def check(self, policy: MemoryPolicy, geometry: MemoryGeometry) -> None:
        """Raises ValueError for a state that a memory of this policy and geometry cannot have."""
        most, batch = policy.window or 0, geometry.batch
        sizes = {len(self.filled), len(self.ends), len(self.left), *map(len, self.queues)}
        if sizes != {batch} or len(self.queues) != geometry.layers:
            raise ValueError(f"queues: found those of another model or batch, expected {geometry.layers} x {batch}")
        slots = [end for layer in self.queues for queue in layer for end in queue]
        if max([0, *self.filled, *slots]) > most:
            raise ValueError(f"queues: found slot {max([*self.filled, *slots])}, expected at most {most}")
        if any(n == most and not layer[i] for layer in self.queues for i, n in enumerate(self.filled)):
            raise ValueError("queues: found an empty one of a memory that is full, expected the slots that come next")


class OverwritePass(MemoryPass):
    """One forward's view of it, opened by `KVMemory.open_step`.

    first, frames: latent frame at which the block starts, and how many it has. writes: it is the last of the block's
    `steps`, after which its keys stay. starts: position of the block, for every clip of the batch. own_stage: every
    clip is a stage of a stream batch, whose block has one step there.
    """

    def __init__(
        self, policy: MemoryPolicy, geometry: MemoryGeometry, store: Store, state: OverwriteState, first: int,
        frames: int, starts: tuple[int, ...], steps: int, writes: bool, own_stage: bool,
    ) -> None:  # fmt: skip
        segment = Segment(
            frames=tuple(range(first, first + frames)), writes=writes, tokens=frames * geometry.tokens,
            block_slots=NO_SLOTS, kept_slots=NO_SLOTS, read_slots=NO_SLOTS, rotary=NO_ROTARY, read_rotary=None,
            joined_rotary=None,
        )  # fmt: skip
        super().__init__(policy, geometry, store, [segment])
        self.starts, self.frames_in_block, self.size = starts, frames, policy.window or 0
        rows, size = range(len(starts)), self.size
        self.full = [starts[r] + frames > size or state.filled[r] >= size for r in rows]
        self.filled = [size if self.full[r] else state.filled[r] + starts[r] + frames - state.ends[r] for r in rows]
        left = [state.left[r] or steps for r in rows]
        self.leaves = [self.full[r] and (own_stage or left[r] <= 1) for r in rows]
        self.left = [steps if self.leaves[r] else left[r] - self.full[r] for r in rows]
        self.queues = [[list(queue) for queue in layer] for layer in state.queues]

    @property
    def state(self) -> OverwriteState:
        """After the forward."""
        queues = tuple(tuple(tuple(queue) for queue in layer) for layer in self.queues)
        ends = tuple(start + self.frames_in_block for start in self.starts)
        return OverwriteState(tuple(self.filled), ends, tuple(self.left), queues)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("a pass of this memory writes it and runs without gradient: wrap it in torch.no_grad()")
        rows = range(len(self.starts))
        tables = [self._table(start, q.device) for start in self.starts]
        if len(set(self.starts)) == 1:
            q, k = apply_rotary(q, tables[0]), apply_rotary(k, tables[0])
        else:
            q, k = (torch.cat([apply_rotary(x[r : r + 1], tables[r]) for r in rows]) for x in (q, k))
        keys, values = self.store.buffers[layer]
        for r in rows:
            last = self._slot_end(layer, r, keys[r], values[r], k[r], v[r])
            for buffer, new in ((keys, k), (values, v)):
                frames = new[r].unflatten(0, (self.frames_in_block, -1))
                buffer[r, last - self.frames_in_block : last] = frames.to(buffer.dtype)
        if len(set(self.filled)) == 1:
            return attention(q, *(x[:, : self.filled[0]].flatten(1, 2).to(q.dtype) for x in (keys, values)))
        parts = []
        for r in rows:
            read = (x[r : r + 1, : self.filled[r]].flatten(1, 2).to(q.dtype) for x in (keys, values))
            parts.append(attention(q[r : r + 1], *read))
        return torch.cat(parts)

    def _slot_end(self, layer: int, row: int, keys: Tensor, values: Tensor, k: Tensor, v: Tensor) -> int:
        """The end of the block's slots, after the queue has changed. keys, values: [slots, tokens, heads, D]."""
        queue, sink, frames = self.queues[layer][row], self.policy.sink, self.frames_in_block
        if sink and self.policy.refresh > -1 and frames == 1:
            pairs = ((keys, k), (values, v))
            likeness = sum(_similarity(kept[:sink], new) for kept, new in pairs) / 2
            assert isinstance(likeness, Tensor)
            least = int(likeness.argmin())
            if float(likeness[least]) < self.policy.refresh:
                queue.insert(0, least + 1)
        if not self.full[row]:
            following = self.starts[row] + 2 * frames
            if sink < following <= self.size and (not queue or queue[-1] != following):
                queue.append(following)
            return self.filled[row]
        end = queue[0]
        if self.leaves[row]:
            queue.pop(0)
            if end > sink:
                queue.append(end)
        return end

    def _table(self, start: int, device: torch.device) -> Rotary:
        g = self.geometry
        positions = tuple(range(start, start + self.frames_in_block))
        return cached_rotary_table(positions, g.height, g.width, g.head_dim, device)


def _similarity(kept: Tensor, new: Tensor) -> Tensor:
    """Cosines of the means over tokens: slots [S, tokens, heads, D] and one frame [tokens, heads, D] -> [S]."""
    means = kept.float().mean(1).flatten(1)
    return torch.cosine_similarity(means, new.float().mean(0).flatten()[None], dim=-1)
