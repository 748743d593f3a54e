"""A CUDA device that is not there: the project's own code runs on fake tensors that claim to be on `cuda:0`.

Shapes, dtypes, devices and the order of operations are the real code's; no number is computed and no byte of a tensor
is allocated. What the method cannot show, because it is a stub here: streams and events (everything runs in the order
of its launch), pinning (only remembered), kernels and their workspaces, the choice of an attention kernel, what the
caching allocator loses to fragmentation, and backward on the device.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from salt import rope
from salt.acceleration import cuda_streams
from salt.solvers import unipc

DEVICE = torch.device("cuda:0")  # without an index a CPU build answers with meta tensors
GUARD_CUDA, GUARD_META = 1, 14  # places in c10's table of device guards
DEFAULT_STREAM = "default"
CAPACITY = 140 * 10**9  # bytes that seem to be free


class FakeStream:
    """A stream by name. Work is attributed to the stream that is current when it is launched."""

    numbers = itertools.count(1)

    def __init__(self, device: object = DEVICE, *args: object, **options: object) -> None:
        self.device, self.name = DEVICE, f"side {next(FakeStream.numbers)}"

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None:
        state.explicit_wait("Stream.synchronize")


class FakeEvent:
    """An event that has always happened; the host's waits for it are counted by the ledger."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def record(self, stream: object = None) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        state.explicit_wait("Event.synchronize")


class _State:
    """What the stubs know: the current stream, pinned storages, and what counts explicit waits."""

    def __init__(self) -> None:
        self.default = FakeStream()
        self.default.name = DEFAULT_STREAM
        self.streams = [self.default]
        self.pinned: weakref.WeakSet[Any] = weakref.WeakSet()
        self.explicit_wait: Callable[[str], None] = lambda what: None

    @property
    def stream(self) -> str:
        return self.streams[-1].name

    @contextlib.contextmanager
    def on(self, stream: FakeStream | None) -> Iterator[None]:
        self.streams.append(stream or self.streams[-1])
        try:
            yield
        finally:
            self.streams.pop()

    def pin(self, x: Tensor) -> Tensor:
        self.pinned.add(x.untyped_storage())
        return x

    def is_pinned(self, x: Tensor) -> bool:
        return x.untyped_storage() in self.pinned


state = _State()


def _pinning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A factory whose pinned tensors are remembered."""

    def made(*args: object, pin_memory: bool = False, **options: object) -> Tensor:
        x = make(*args, **options)
        return state.pin(x) if pin_memory else x

    return made


def _remembering(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor`, whose numbers are remembered as long as they are in main memory."""

    def made(data: object, *args: object, **options: Any) -> Tensor:
        x: Any = make(data, *args, **options)
        x.numbers = data
        return x

    return made


def _as_list(x: Any) -> Any:
    """`Tensor.tolist`: the numbers that a tensor was made of, or ones."""
    if x.is_cuda:
        state.explicit_wait("tolist")
    return getattr(x, "numbers", None) or np.ones(tuple(x.shape)).tolist()


def _as_array(x: Tensor, *, force: bool = False) -> np.ndarray:
    return np.zeros(tuple(x.shape), str(x.dtype).rpartition(".")[2])


def _converted(module: torch.nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """`Module._apply` with new parameters in place of the old: the data of a fake tensor cannot be exchanged."""
    for child in module.children() if recurse else ():
        _converted(child, fn)
    for name, p in module._parameters.items():
        if p is not None:
            module._parameters[name] = torch.nn.Parameter(fn(p.detach()), p.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


_DATA: Any = torch._C.TensorBase.data


def _set_data(x: Tensor, value: Tensor) -> None:
    """`Tensor.data = ...`, by which diffusers moves a weight between main memory and the device."""
    _DATA.__set__(x, value)
    if isinstance(x, FakeTensor) and isinstance(value, FakeTensor):
        x.fake_device = value.fake_device


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention as a GPU runs it: one kernel without a matrix of all pairs."""
    aten: Any = torch.ops.aten
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]


@torch.library.custom_op("salt_ledger::fused_rms_norm", mutates_args=())
def _fused_rms_norm(x: Tensor, weight: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@_fused_rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def _rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMS norm as a GPU runs it, in one kernel; a CPU build takes it apart."""
    if torch.is_grad_enabled() or (weight is not None and weight.dtype != input.dtype):
        return torch.rms_norm(input, normalized_shape, weight, eps)
    return _fused_rms_norm(input, weight)


def _lend_device_guard() -> None:
    """CPU builds of torch have no guard for CUDA devices; that of meta does nothing, which is what is wanted."""
    if torch.cuda._is_compiled():
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 16).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[GUARD_CUDA] = guards[GUARD_CUDA] or guards[GUARD_META]


def clear_caches() -> None:
    """Tables, weights and streams that were made here must not reach a real rollout, nor the other way round."""
    for cached in (rope.cached_rotary_table, rope._axis_table, cuda_streams.side_stream, unipc.step_weights):
        cached.cache_clear()


@contextlib.contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Context in which `cuda:0` seems to exist. Tensors made in it are fake; use them only in it."""
    _lend_device_guard()
    factories: Any = importlib.import_module("torch.utils._device")
    factories._device_constructors()  # remembers the real torch.zeros before it is replaced here
    pinned_copy: Callable[[Tensor], Tensor] = lambda x, *unused: state.pin(x.clone())  # noqa: E731
    replaced: list[tuple[Any, str, Any]] = [
        (torch.cuda, "Stream", FakeStream),
        (torch.cuda, "Event", FakeEvent),
        (torch.cuda, "current_stream", lambda device=None: state.streams[-1]),
        (torch.cuda, "stream", state.on),
        (torch.cuda, "mem_get_info", lambda device=None: (CAPACITY, CAPACITY)),
        (torch.cuda, "memory_reserved", lambda device=None: 0),
        (torch.cuda, "memory_allocated", lambda device=None: 0),
        (torch, "zeros", _pinning(torch.zeros)),
        (torch, "empty", _pinning(torch.empty)),
        (torch, "tensor", _remembering(torch.tensor)),
        (torch.Tensor, "data", property(_DATA.__get__, _set_data)),
        (torch.Tensor, "pin_memory", pinned_copy),
        (torch.Tensor, "is_pinned", lambda x, *unused: state.is_pinned(x)),
        (torch.Tensor, "numpy", _as_array),
        (torch.Tensor, "tolist", _as_list),
        (torch.Tensor, "record_stream", lambda x, stream: None),
        (torch.nn.Module, "_apply", _converted),
        (torch.nn.functional, "rms_norm", _rms_norm),
        (torch.nn.functional, "scaled_dot_product_attention", _attention),
    ]
    before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in replaced]
    clear_caches()
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield DEVICE
    finally:
        for owner, name, value in before:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        clear_caches()
