"""Bytes that a forward and its backward hold, measured by running them on tensors without storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from salt import rope
from salt.models.transformer_salt import SaltTransformer3DModel


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a forward: `peak` while it runs, `kept` until backward, `backward` on top of kept during backward.

    Weights and their gradients are not included; copies of weights that autocast makes are.
    """

    peak: int = 0
    kept: int = 0
    backward: int = 0

    def repeated(self, count: int) -> MemoryUse:
        """`count` such forwards, one after the other, all kept until backward."""
        return replace(self, kept=count * self.kept)

    def interpolate(self, other: MemoryUse, share: float) -> MemoryUse:
        """The point on the line through self (share 0) and other (share 1), not below 0."""
        pairs = ((self.peak, other.peak), (self.kept, other.kept), (self.backward, other.backward))
        return MemoryUse(*(max(round(a + share * (b - a)), 0) for a, b in pairs))


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of live storages that were allocated while the mode was active.

    now, peak: bytes. Storages from before (weights, inputs) are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.external: dict[int, StorageWeakRef] = {}
        self.allocated: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, Tensor):
                ref = StorageWeakRef(t.untyped_storage())
                if ref.cdata not in self.allocated:
                    self.external.setdefault(ref.cdata, ref)
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                ref = StorageWeakRef(storage)  # while it is held, its address is not reused
                if ref.cdata not in self.external and ref.cdata not in self.allocated:
                    self.allocated[ref.cdata] = (ref, storage.nbytes())
        self.sweep()
        return out

    def sweep(self) -> None:
        """Drop storages that were freed, and update `now` and `peak`."""
        for key in [k for k, (ref, _) in self.allocated.items() if ref.expired()]:
            del self.allocated[key]
        self.now = sum(size for _, size in self.allocated.values())
        self.peak = max(self.peak, self.now)


def measure(forward: Callable[[], Tensor], gradient: bool) -> MemoryUse:
    """Run a forward, and its backward if `gradient`, and record the bytes that were allocated."""
    with AllocationCounter() as live, torch.set_grad_enabled(gradient):
        out = forward()
        live.sweep()
        peak, kept = live.peak, live.now
        live.peak = kept
        if gradient:
            out.sum().backward()
    return MemoryUse(peak, kept, live.peak - kept)


@contextmanager
def without_storage(bf16: bool) -> Iterator[None]:
    """Context in which tensors have shapes and no storage, with autocast as `parallel.DistributedModel` sets it."""
    try:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False)
        with FakeTensorMode(allow_non_fake_inputs=True), autocast:
            yield
    finally:
        for cached in (
            rope.cached_rotary_table,
            rope._axis_table,
        ):  # a table without storage must not reach a real rollout
            cached.cache_clear()


def without_weights(model: SaltTransformer3DModel, dtype: torch.dtype) -> SaltTransformer3DModel:
    """Replace a meta model's weights by fake tensors (call it within `without_storage`); returns the model."""
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            here = torch.empty(p.shape, dtype=dtype)
            setattr(module, name, nn.Parameter(here, p.requires_grad))
    return model
