"""A memory whose heads are split over processes: one process's part of a whole memory, and the whole of all parts."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..memory import KVMemory
from .heads import HeadGroup

HEADS = 3  # dimension of a memory's buffers [B, slots, tokens, heads, n]


def own_part(memory: KVMemory, group: HeadGroup) -> KVMemory:
    """The heads of this process in a whole memory. Raises InputError where they cannot be shared evenly."""
    heads = memory.geometry.heads
    group.check_heads(heads)
    return memory.copied(memory.device, heads // group.size, lambda x: x.chunk(group.size, dim=HEADS)[group.rank])


def whole(memory: KVMemory, group: HeadGroup) -> KVMemory:
    """The memory with the heads of all processes, in main memory; every process has to call it."""

    def gathered(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(group.size)]
        dist.all_gather(parts, x.contiguous(), group=group.group)
        return torch.cat([part.cpu() for part in parts], dim=HEADS)

    return memory.copied("cpu", memory.geometry.heads * group.size, gathered)
