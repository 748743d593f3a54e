"""Writing and reading a KV memory as torch operations, each one Triton kernel.

q, k, v: [B, S, heads, head_dim]. A ring is a layer's buffer of a memory, [B, slots, tokens, heads, n], with the scales
of a quantised one. What they compute is said by their plain twin, `MemoryPass.attend` without kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launching import padded, warps

WRITE_SCHEMA = """(
    Tensor q, Tensor k, Tensor v, Tensor q_weight, Tensor k_weight, float eps, Tensor cos, Tensor sin,
    Tensor(a!)? keys, Tensor(b!)? values, Tensor(c!)? ring_k, Tensor(d!)? ring_v, Tensor(e!)? ring_k_scale,
    Tensor(f!)? ring_v_scale, Tensor? slots, int tokens, str precision, int group, bool rotate_stored
) -> Tensor"""
READ_SCHEMA = """(
    Tensor ring_k, Tensor ring_v, Tensor? ring_k_scale, Tensor? ring_v_scale, Tensor? slots, int frames, Tensor? cos,
    Tensor? sin, Tensor(a!) keys, Tensor(b!)? values, str precision, int group
) -> ()"""


def shape_options(heads: int, head_dim: int, group: int) -> dict[str, int]:
    """What a kernel is compiled for."""
    heads_p, dim_p = padded(heads), padded(head_dim)
    return dict(HEADS=heads, DIM=head_dim, GROUP=group, HEADS_P=heads_p, DIM_P=dim_p, num_warps=warps(heads_p * dim_p))


@torch.library.custom_op(
    "salt::rotate_and_write",
    mutates_args=("keys", "values", "ring_k", "ring_v", "ring_k_scale", "ring_v_scale"),
    schema=WRITE_SCHEMA,
)
def rotate_and_write(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor,
    sin: Tensor, keys: Tensor | None, values: Tensor | None, ring_k: Tensor | None, ring_v: Tensor | None,
    ring_k_scale: Tensor | None, ring_v_scale: Tensor | None, slots: Tensor | None, tokens: int, precision: str,
    group: int, rotate_stored: bool,
) -> Tensor:  # fmt: skip
    """Queries and keys after their RMS norms and RoPE; returns the queries.

    keys, values [B, N, heads, head_dim]: their last S places become the keys and values, for attention to read.
    ring_k and the rest: where they are stored, quantised by `precision`; keys with or without rotation. slots [frames]:
    which of its slots; None: the first ones. tokens: of a frame.
    """
    from .device.memory import rotate_and_write_kernel

    kernel: Any = rotate_and_write_kernel  # Triton's type of it has no launch options
    batch, rows, heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    read_rows = rows if keys is None else keys.shape[1]
    with torch.cuda.device_of(q):
        kernel[(rows, batch, 3)](
            q, k, v, q_weight, k_weight, cos, sin, eps, out, keys, values, ring_k, ring_v, ring_k_scale, ring_v_scale,
            slots, q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), rows, read_rows,
            read_rows - rows, 0 if ring_k is None else ring_k.shape[1], tokens,
            READ=keys is not None, WRITE=ring_k is not None, SLOTS=slots is not None, ROTATE_STORED=rotate_stored,
            PRECISION=precision, **shape_options(heads, head_dim, group),
        )  # fmt: skip
    return out


@torch.library.custom_op("salt::read_memory", mutates_args=("keys", "values"), schema=READ_SCHEMA)
def read_memory(
    ring_k: Tensor, ring_v: Tensor, ring_k_scale: Tensor | None, ring_v_scale: Tensor | None, slots: Tensor | None,
    frames: int, cos: Tensor | None, sin: Tensor | None, keys: Tensor, values: Tensor | None, precision: str,
    group: int,
) -> None:  # fmt: skip
    """The first places of keys, values [B, N, heads, head_dim] become those of `frames` slots of a ring.

    slots [frames]: which; None: the first ones. cos, sin: keys are rotated by them. values None: keys alone.
    """
    from .device.memory import read_kernel

    kernel: Any = read_kernel
    batch, read_rows, heads, head_dim = keys.shape
    tokens = ring_k.shape[2]
    if frames == 0:
        return
    with torch.cuda.device_of(keys):
        kernel[(frames * tokens, batch, 1 if values is None else 2)](
            ring_k, ring_v, ring_k_scale, ring_v_scale, slots, cos, sin, keys, values, ring_k.shape[1], read_rows,
            tokens, SLOTS=slots is not None, ROTATE=cos is not None, PRECISION=precision,
            **shape_options(heads, head_dim, group),
        )  # fmt: skip


@rotate_and_write.register_fake
def _(q: Tensor, *unused: object) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@read_memory.register_fake
def _(*unused: object) -> None:
    return None
