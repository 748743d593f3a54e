"""What one operation costs: the bytes that its kernel must move, its arithmetic, and whether the host waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from salt.acceleration.kernels.traffic import KERNEL_BYTES

STAGED_BYTES = 2**16  # of pageable memory that the driver copies without waiting for the stream
# Make a tensor and launch nothing.
ALLOCATIONS = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "detach"}
# Touch only the rows that they are asked for, not the whole of their first input.
ROWS_READ = {"index_select", "index", "embedding", "gather"}
WRITTEN_ONLY = {"zero_", "fill_", "normal_", "uniform_", "random_", "arange", "zeros", "ones", "full"}
GROUPS = (
    ("attention", ("_scaled_dot_product",)),
    ("linear", ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_int_mm")),
    ("convolution", ("convolution",)),
    ("norms", ("native_layer_norm", "fused_rms_norm", "modulated_norm", "native_group_norm", "rsqrt", "mean", "pow")),
    ("casts and copies", ("_to_copy", "copy_", "clone", "cat", "stack")),
    ("memory: write and gather", ("index_copy", "index_select", "index_put", "rotate_and_write", "read_memory")),
)
OTHER = "elementwise"


def tensors(x: object) -> list[Tensor]:
    return [t for t in tree_leaves(x) if isinstance(t, Tensor)]


def group_of(name: str) -> str:
    """The kind of an operation, for the table."""
    return next((group for group, starts in GROUPS if name.startswith(starts)), OTHER)


def nbytes(x: Tensor) -> int:
    """Bytes of the elements that a tensor really has: an expanded axis counts once."""
    size = x.element_size()
    for length, stride in zip(x.shape, x.stride(), strict=True):
        size *= length if stride or length == 0 else 1
    return size


def moved_bytes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: object, mutable: bool) -> int:
    """Bytes that a kernel reads and writes."""
    if name in KERNEL_BYTES:
        return KERNEL_BYTES[name](*args)
    inputs, outputs = [t for t in tensors((args, kwargs)) if t.is_cuda], [t for t in tensors(out) if t.is_cuda]
    written = sum(map(nbytes, outputs))
    if name in WRITTEN_ONLY:
        return written
    if name in ROWS_READ:
        return 2 * written + sum(nbytes(t) for t in inputs[1:])
    if name.startswith("index_copy"):  # (target, axis, index, source)
        return 2 * nbytes(inputs[-1])
    if name == "copy_":
        return nbytes(inputs[0]) + nbytes(inputs[-1])
    return written + sum(map(nbytes, inputs)) - (nbytes(kwargs["out"]) if mutable and "out" in kwargs else 0)


def arithmetic(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: object) -> int:
    """Floating-point operations of matrix products, attention and convolutions; 0 of anything else."""
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count is not None else 0


def host_waits(name: str, source: Tensor, target: Tensor, non_blocking: bool, pinned: bool) -> bool:
    """Whether the host waits for a copy between main memory and the device. pinned: the part in main memory."""
    if source.is_cuda:
        return not (non_blocking and pinned)
    return not (non_blocking and (pinned or nbytes(target) <= STAGED_BYTES))
