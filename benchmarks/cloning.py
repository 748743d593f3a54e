"""The KV cache of the published rollout loops, as the baseline for `salt.memory.KVMemory`.

Every layer of every forward clones its whole cache, evicts by shifting, writes the block's keys and values in denoising
steps as well as in the context pass, reads its indices from the device (`.item()`), and rotates queries and keys as
complex128 numbers with a table assembled at every call. `CloningMemory` has the interface of `KVMemory`, so that our
rollout and student also run on it, and gives the same latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from salt.memory import MemoryGeometry, MemoryPolicy
from salt.models.attention import Attention
from salt.rope import axis_dims

PUBLISHED_POSITIONS = 1024  # length of the published tables


class PlainRotary:
    """Wan's rotary embedding with one complex table [positions, head_dim / 2], sliced and expanded at every call."""

    def __init__(self, head_dim: int, device: torch.device | str = "cpu", positions: int = PUBLISHED_POSITIONS) -> None:
        self.sizes = [dim // 2 for dim in axis_dims(head_dim)]
        position = torch.arange(positions, dtype=torch.float64)
        angles = [
            torch.outer(position, 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim))
            for dim in axis_dims(head_dim)
        ]
        phases = torch.cat(angles, dim=1)
        self.table = torch.polar(torch.ones_like(phases), phases).to(device)

    def __call__(self, x_BSHD: Tensor, start: int, frames: int, height: int, width: int) -> Tensor:
        time, rows, columns = self.table.split(self.sizes, dim=1)
        table = torch.cat(
            [
                time[start : start + frames].view(frames, 1, 1, -1).expand(frames, height, width, -1),
                rows[:height].view(1, height, 1, -1).expand(frames, height, width, -1),
                columns[:width].view(1, 1, width, -1).expand(frames, height, width, -1),
            ],
            dim=-1,
        ).reshape(frames * height * width, 1, -1)
        rotated = [
            torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * table).flatten(-2)
            for x in x_BSHD
        ]
        return torch.stack(rotated).type_as(x_BSHD)


@dataclass(frozen=True)
class PlainBidirectional:
    """Bidirectional attention of a teacher or critic, with the published rotary embedding."""

    rotary: PlainRotary
    frames: int
    height: int
    width: int
    by_layer: ClassVar[bool] = False

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        q, k = (self.rotary(x, 0, self.frames, self.height, self.width) for x in (q, k))
        return attention(q, k, v)


class CloningMemory:
    """A full or sink + window cache at absolute positions: one pair of tensors per layer, cloned at every read.

    frames: latent frames of the clip, the capacity of a full cache. Raises ValueError for other memory policies.
    """

    is_rewound: ClassVar[bool] = False

    def __init__(
        self,
        policy: MemoryPolicy,
        geometry: MemoryGeometry,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        frames: int = 21,
    ) -> None:
        if policy.kind not in ("full", "sink") or policy.precision != "model" or policy.residence != "device":
            raise ValueError(f"policy: found {policy}, expected full or sink + window in the model's own precision")
        self.policy, self.geometry = policy, geometry
        g, held = geometry, policy.window or frames
        shape = (g.batch, held * g.tokens, g.heads, g.head_dim)
        self.caches = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(g.layers)
        ]
        self.ends = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(g.layers)]
        self.global_ends = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(g.layers)]
        # Longer than the published tables, so that long clips on a window can be timed too.
        self.rotary = PlainRotary(g.head_dim, device, max(PUBLISHED_POSITIONS, frames))
        self.next_frame = 0

    def open(self, write: int | Sequence[int] = 0, read: int = 0) -> CloningPass:
        if not isinstance(write, int) or (write and read):
            raise ValueError(
                f"pass: found write {write}, read {read}, expected one block (the published loops do not fuse passes)"
            )
        return CloningPass(self, write or read, bool(write))

    def open_step(self, frames: int, step: int, steps: int) -> CloningPass:
        """A denoising step, which reads."""
        return self.open(read=frames)

    def writing(self, field: str = "memory") -> AbstractContextManager[None]:
        """Like `KVMemory.writing`, without its check: a benchmark runs one rollout at a time."""
        return nullcontext()

    def begin_shot(self, is_shot: bool) -> None:
        """It knows no shots."""

    def commit(self, memory_pass: CloningPass, context_sigma: float = 0.0) -> None:
        """After a forward: move on to the next block if the pass wrote one."""
        if memory_pass.writes:
            self.next_frame += memory_pass.frames


class CloningPass:
    """One forward over a `CloningMemory`. Gradients flow to the block's own keys and values, not into the cache."""

    by_layer: ClassVar[bool] = True

    def __init__(self, memory: CloningMemory, frames: int, writes: bool) -> None:
        self.memory, self.frames, self.writes = memory, frames, writes
        self.start_frame = memory.next_frame

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        memory, g = self.memory, self.memory.geometry
        q, k = (memory.rotary(x, self.start_frame, self.frames, g.height, g.width) for x in (q, k))
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
        memory.caches[layer] = (keys.detach(), values.detach())
        memory.ends[layer].fill_(end)
        memory.global_ends[layer].fill_(current_end)
        return attention(q, keys[:, :end], values[:, :end])
