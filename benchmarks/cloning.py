"""The peer: a cache handled as the published loops do it.

Every layer of every forward clones its whole cache, evicts by shifting, writes the block's keys and values in denoising
steps as well as in the context pass, and asks the device for its indices (`.item()`). It has the same interface as
`salt.memory.KVMemory`, so that the same rollout and student run on it, and it gives the same latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from salt.attention import Attention
from salt.memory import MemoryGeometry, MemoryPolicy
from salt.rope import apply_rotary, rotary_table


class CloningMemory:
    """Sink + window with absolute positions; one cache tensor pair per layer, cloned at every read."""

    def __init__(self, policy: MemoryPolicy, geometry: MemoryGeometry, dtype: torch.dtype) -> None:
        if policy.kind != "sink" or policy.window is None:
            raise ValueError(f"policy: found {policy}, expected sink + window")
        self.policy, self.geometry = policy, geometry
        g = geometry
        shape = (g.batch, policy.window * g.tokens, g.heads, g.head_dim)
        self.caches = [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(g.layers)]
        self.ends = [torch.zeros((), dtype=torch.int64) for _ in range(g.layers)]
        self.global_ends = [torch.zeros((), dtype=torch.int64) for _ in range(g.layers)]
        self.next_frame = 0

    def open(self, write: int = 0, read: int = 0) -> CloningPass:
        return CloningPass(self, write or read, bool(write))


class CloningPass:
    """One forward over a `CloningMemory`."""

    def __init__(self, memory: CloningMemory, frames: int, writes: bool) -> None:
        self.memory, self.frames, self.writes = memory, frames, writes
        self.start_frame = memory.next_frame

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        memory, g = self.memory, self.memory.geometry
        rotary = rotary_table(range(self.start_frame, self.start_frame + self.frames), g.height, g.width, g.head_dim)
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        keys, values = (cache.clone() for cache in memory.caches[layer])
        new, size, sink = k.shape[1], keys.shape[1], memory.policy.sink * g.tokens
        current_end = (self.start_frame + self.frames) * g.tokens
        end = int(memory.ends[layer].item()) + current_end - int(memory.global_ends[layer].item())
        evicted = max(end - size, 0)
        if evicted:
            kept = size - evicted - sink
            for cache in (keys, values):
                cache[:, sink : sink + kept] = cache[:, sink + evicted : sink + evicted + kept].clone()
            end -= evicted
        keys[:, end - new : end], values[:, end - new : end] = k, v
        memory.caches[layer] = (keys, values)
        memory.ends[layer].fill_(end)
        memory.global_ends[layer].fill_(current_end)
        return attention(q, keys[:, :end], values[:, :end])

    def commit(self, context_sigma: float = 0.0) -> None:
        if self.writes:
            self.memory.next_frame += self.frames
