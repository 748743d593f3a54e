"""Memories of two layers, written by a model that has self-attention alone."""

from __future__ import annotations

import torch

from salt.memory import KVMemory, MemoryGeometry, MemoryPolicy

GEOMETRY = MemoryGeometry(layers=2, heads=2, head_dim=8, height=1, width=2)
POLICIES = [
    MemoryPolicy(),
    MemoryPolicy("window", 9),
    MemoryPolicy("sink", 12, 3),
    MemoryPolicy("relative", 9, 1),
    MemoryPolicy("cyclic", 9),
    MemoryPolicy("blended", 9, 3, blend=0.8),
]


def dense(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    ).transpose(1, 2)


def write(memory, frames=3, value=None):
    """One context pass of a model that only has self-attention; keys and values are random, or `value`."""
    passing = memory.open(write=frames)
    g = memory.geometry
    for layer in range(g.layers):
        q, k, v = torch.randn(3, g.batch, frames * g.tokens, g.heads, g.head_dim)
        if value is not None:
            k, v = torch.full_like(k, value), torch.full_like(v, value)
        passing.attend(layer, q, k, v, dense)
    memory.commit(passing)


def written(policy: MemoryPolicy, blocks: int) -> KVMemory:
    """A memory into which `blocks` blocks of three latent frames were written."""
    memory = KVMemory(policy, GEOMETRY)
    for _ in range(blocks):
        write(memory)
    return memory
