"""Bytes that the memory's kernels read and write, by operation, from its arguments: for `benchmarks/ledger`.

They touch rows of tensors that are much larger. Neighbouring channels are loaded twice, the second time from a cache.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def _whole(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _rows(rows: int, *tensors: Tensor | None) -> int:
    """Bytes of this many rows (one token of all heads) of tensors [..., heads, n]."""
    return sum(rows * t.shape[-2] * t.shape[-1] * t.element_size() for t in tensors if t is not None)


def bytes_of_write(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor,
    sin: Tensor, keys: Tensor | None, values: Tensor | None, ring_k: Tensor | None, ring_v: Tensor | None,
    ring_k_scale: Tensor | None, ring_v_scale: Tensor | None, slots: Tensor | None, *unused: object,
) -> int:  # fmt: skip
    """Of `memory_ops.rotate_and_write`."""
    rows = q.shape[0] * q.shape[1]
    read = _whole(q, k, v, q_weight, k_weight, cos, sin, slots)
    return read + _whole(q) + _rows(rows, keys, values, ring_k, ring_v, ring_k_scale, ring_v_scale)


def bytes_of_read(
    ring_k: Tensor, ring_v: Tensor, ring_k_scale: Tensor | None, ring_v_scale: Tensor | None, slots: Tensor | None,
    frames: int, cos: Tensor | None, sin: Tensor | None, keys: Tensor, values: Tensor | None, *unused: object,
) -> int:  # fmt: skip
    """Of `memory_ops.read_memory`."""
    rows = keys.shape[0] * frames * ring_k.shape[2]
    tables = 0 if cos is None else 2 * frames * ring_k.shape[2] * cos.shape[-1] * cos.element_size()
    moved = _rows(rows, ring_k, ring_k_scale, keys) + tables + _whole(slots)
    return moved if values is None else moved + _rows(rows, ring_v, ring_v_scale, values)


KERNEL_BYTES: dict[str, Callable[..., int]] = {"rotate_and_write": bytes_of_write, "read_memory": bytes_of_read}
