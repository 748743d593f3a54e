"""CUDA graphs of a student's forward: recorded once per shape and replayed, with no kernel launched from Python.

A recording has fixed shapes and addresses. A windowed memory has them once its window is full: buffers never move, the
same number of frames is read, and only the contents of a few small tensors (slots, rotary tables) change from block to
block. Until then, and for memories without a window, the student is called as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..memory import MemoryPass
from ..memory.attention import Segment
from ..models.causal_model import StudentTransformer
from ..models.cross_attention_cache import CrossAttentionCache
from ..rope import Rotary

Replay = Callable[[], None]
Record = Callable[[Replay], Replay]
MAX_RECORDINGS = 6  # each keeps its memory's buffers alive; a clip needs three, with guidance six


class DeviceTransformer(StudentTransformer, Protocol):
    """A student's transformer that knows its device and dtype, as diffusers' models do."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


def cuda_graphs(device: torch.device) -> Record:
    """Records functions as CUDA graphs. A function must have run before, so that lazy initialisation is done.

    The graphs share one memory pool: they are replayed one at a time, and results are copied before the next replay.
    """
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(function: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # On the model's own device: work on another device than the current one is silently not recorded. thread_local:
        # threads beside this one, which decode or encode texts, may allocate and wait meanwhile.
        recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.device(device), recording:
            function()
        return graph.replay

    return record


@dataclass
class _Recording:
    """One recorded forward. Its inputs are copied into `inputs`; `replay` leaves the flow in `result`.

    cache: the cross-attention cache that the recording reads; source: the one whose contents were copied there last.
    forward: the recorded function. A graph knows only addresses: the tensors at them must live as long as it does, the
    store among them, whose id is part of the recording's key.
    """

    inputs: list[Tensor]
    cache: CrossAttentionCache
    source: CrossAttentionCache
    result: dict[str, Tensor]
    forward: Replay
    replay: Replay

    def load(self, cache: CrossAttentionCache) -> None:
        """Make the recording read the contents of `cache`, which is kept alive so that its identity stays unique."""
        if cache is not self.source:
            for own, new in zip(self.cache.tensors(), cache.tensors(), strict=True):
                own.copy_(new)
            self.source = cache


class CUDAGraphTransformer:
    """A student's transformer, called as `CausalModel` calls it, that replays recordings where shapes are fixed.

    record: records a function; tests on the CPU pass one that returns the function itself.
    """

    def __init__(self, student: DeviceTransformer, record: Record | None = None) -> None:
        self.student, self.record = student, record or cuda_graphs(student.device)
        self.dtype = student.dtype
        self._recordings: dict[tuple[object, ...], _Recording | None] = {}

    def __call__(
        self, x: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None, /, *, return_dict: Literal[False],
        attention_context: MemoryPass | None = None, cross_attention_cache: CrossAttentionCache | None = None,
    ) -> tuple[Tensor]:  # fmt: skip
        """(flow [B, C, F, H, W],) of latents x at timesteps [B, F]; see `SaltTransformer3DModel.forward`."""
        memory, cache = attention_context, cross_attention_cache

        def forward(x: Tensor, t: Tensor, memory: MemoryPass | None, cache: CrossAttentionCache | None) -> Tensor:
            (flow,) = self.student(
                x, t, text, image, return_dict=False, attention_context=memory, cross_attention_cache=cache
            )
            return flow

        shapes = () if cache is None else tuple(tensor.shape for tensor in cache.tensors())
        if memory is None or cache is None or not shapes or not has_fixed_shapes(memory):
            return (forward(x, timestep, memory, cache),)
        key = (id(memory.store), x.shape, x.dtype, shapes, *(_shape_of(segment) for segment in memory.segments))
        if key not in self._recordings:  # the first forward of a shape runs as usual: it initialises what is lazy
            while len(self._recordings) >= MAX_RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = None
            return (forward(x, timestep, memory, cache),)
        recording = self._recordings.pop(key) or self._recorded(forward, x, timestep, memory, cache)
        self._recordings[key] = recording  # last in order: the least recently used is dropped first
        recording.load(cache)
        for own, new in zip(recording.inputs, _input_tensors(x, timestep, memory), strict=True):
            own.copy_(new)
        recording.replay()
        return (recording.result["flow"].clone(),)

    def _recorded(
        self,
        forward: Callable[[Tensor, Tensor, MemoryPass, CrossAttentionCache], Tensor],
        x: Tensor,
        timestep: Tensor,
        memory: MemoryPass,
        cache: CrossAttentionCache,
    ) -> _Recording:
        x, timestep, memory, own_cache = x.clone(), timestep.clone(), _copied_pass(memory), cache.copied()
        result: dict[str, Tensor] = {}

        def function() -> None:
            result["flow"] = forward(x, timestep, memory, own_cache)

        inputs = _input_tensors(x, timestep, memory)
        return _Recording(inputs, own_cache, cache, result, function, self.record(function))


def has_fixed_shapes(memory: MemoryPass) -> bool:
    """Whether the shapes of this pass recur block after block: the window is full."""
    policy = memory.policy
    if policy.window is None or policy.residence == "cpu" or torch.is_grad_enabled():
        return False
    beside = not policy.rebuilt  # whether the block counts as part of the window
    return all(s.kept_slots.shape[0] + beside * len(s.frames) == policy.window for s in memory.segments)


def _shape_of(segment: Segment) -> tuple[object, ...]:
    """What must be equal for a recording to serve a segment; the contents of tensors may differ."""

    def shape(value: object) -> object:
        if isinstance(value, Rotary):
            return ("rotary", value.cos.shape)
        return ("tensor", value.shape) if isinstance(value, Tensor) else value

    return tuple(shape(getattr(segment, f.name)) for f in fields(segment) if f.name != "frames")


def _copied_pass(memory: MemoryPass) -> MemoryPass:
    """A pass of the same shape and store with slot and rotary tensors of its own, into which others are copied."""

    def copy(value: object) -> object:
        if isinstance(value, Rotary):
            return Rotary(*(part.clone() for part in value))
        return value.clone() if isinstance(value, Tensor) else value

    segments = [replace(s, **{f.name: copy(getattr(s, f.name)) for f in fields(s)}) for s in memory.segments]
    return MemoryPass(memory.policy, memory.geometry, memory.store, segments)


def _input_tensors(x: Tensor, timestep: Tensor, memory: MemoryPass) -> list[Tensor]:
    """All tensors that differ from one forward of a shape to the next, in a fixed order."""
    tensors = [x, timestep]
    for segment in memory.segments:
        for field in fields(segment):
            value = getattr(segment, field.name)
            tensors += list(value) if isinstance(value, Rotary) else [value] if isinstance(value, Tensor) else []
    return tensors
