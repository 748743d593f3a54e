"""Writing and reading a store by fused kernels: what `MemoryPass` does in plain torch, in two launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..acceleration.kernels.launching import DTYPES, fits
from ..acceleration.kernels.memory_ops import read_memory, rotate_and_write
from ..rope import Rotary
from .quantization import GROUP
from .store import Store, row_kinds


@dataclass(frozen=True)
class QKNorm:
    """The RMS norms that queries and keys [B, S, heads, head_dim] still need, over all heads: weights and epsilon."""

    q: Tensor
    k: Tensor
    eps: float


@dataclass(frozen=True)
class Ring:
    """A layer's tensors in the order of `Store.buffers`, or of a part of it: [B, slots, tokens, heads, n]."""

    k: Tensor | None = None
    v: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


def kernels_fit(store: Store, q: Tensor, k: Tensor, v: Tensor, norm: QKNorm) -> bool:
    """Whether kernels can take these, and write and read this store."""
    head_dim = store.geometry.head_dim
    if any(w.device != q.device or w.dtype not in DTYPES for w in (norm.q, norm.k)):
        return False  # weights that a hook moves or casts
    laid_out = all(x.stride(2) == head_dim and fits(x.flatten(2)) and x.dtype == store.dtype for x in (q, k, v))
    # One program takes a row apart into int4's groups, which its padding must not shift.
    return laid_out and head_dim % 2 == 0 and (store.precision != "int4" or head_dim & (head_dim - 1) == 0)


def write(
    store: Store, layer: int, q: Tensor, k: Tensor, v: Tensor, norm: QKNorm, rotary: Rotary,
    read: tuple[Tensor, Tensor] | None, slots: Tensor | None, rotate_stored: bool,
) -> Tensor:  # fmt: skip
    """The queries; keys and values go to where attention reads them (the end of `read`) and are stored in `slots`.

    read: keys and values of kept frames, with room for these; None where the store itself is read. slots: None for a
    block that is not stored. rotate_stored: whether keys are stored with their rotation.
    """
    g, on_device = store.geometry, store.home == store.device
    keys, values = read or (None, None)
    parts: tuple[Tensor, ...] = ()
    if slots is not None and on_device:
        parts = store.buffers[layer]
    elif slots is not None:  # put together on the device, on its way to main memory
        parts = tuple(
            torch.empty(g.batch, slots.shape[0], g.tokens, g.heads, n, dtype=dtype, device=store.device)
            for n, dtype in row_kinds(store.precision, store.dtype, g.head_dim)
        )
    ring = Ring(*parts)
    q = rotate_and_write(
        q, k, v, norm.q, norm.k, norm.eps, rotary.cos, rotary.sin, keys, values, ring.k, ring.v, ring.k_scale,
        ring.v_scale, slots if on_device else None, g.tokens, store.precision, _group(store), rotate_stored,
    )  # fmt: skip
    if slots is not None and not on_device:
        store.write_parts(layer, slots, list(parts))
    return q


def read(
    store: Store, layer: int, slots: Tensor | int, rotary: Rotary | None, reserve: int = 0, prefetch_next: bool = False
) -> tuple[Tensor, Tensor]:
    """Keys and values of slots (a count: of the first ones) as [B, N * tokens + reserve, heads, head_dim].

    rotary: of the keys, where positions are re-assigned. Other arguments as for `Store.gather`.
    """
    g, values, index = store.geometry, None, None
    if isinstance(slots, int):  # of a store that is read in place
        keys, values = store.view(layer, slots)
        if rotary is None:
            return keys, values
        parts, frames = store.buffers[layer], slots
    elif store.home == store.device:
        parts, frames, index = store.buffers[layer], slots.shape[0], slots
    else:
        parts, frames = store.take_parts(layer, slots, reserve, prefetch_next), slots.shape[0]
        if store.precision == "model" and rotary is None:
            return parts[0].flatten(1, 2), parts[1].flatten(1, 2)
    shape = (g.batch, frames * g.tokens + reserve, g.heads, g.head_dim)
    keys = torch.empty(shape, dtype=store.dtype, device=store.device)
    made = None
    if values is None:  # else attention reads them as they are stored
        made = values = torch.empty_like(keys)
    ring = Ring(*parts)
    assert ring.k is not None and ring.v is not None
    cos, sin = rotary or (None, None)
    read_memory(
        ring.k, ring.v, ring.k_scale, ring.v_scale, index, frames, cos, sin, keys, made, store.precision, _group(store)
    )
    return keys, values


def _group(store: Store) -> int:
    return min(GROUP, store.geometry.head_dim // 2)
