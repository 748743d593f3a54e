"""A student's forward, recorded once as a CUDA graph and played again: no kernel is launched from Python after that.

A recording has fixed shapes and addresses. A windowed memory has them once its window is full: buffers never move, the
same number of frames is read, and only the contents of a few small tensors (slots, rotary tables) change from block to
block. Until then, and for memories without a window, the student is called as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..memory import MemoryPass
from ..models.cross_attention_cache import CrossAttentionCache
from ..rope import Rotary

Play = Callable[[], None]
Record = Callable[[Play], Play]
KEPT = 6  # recordings, which keep their memories' buffers alive; a clip needs three, with guidance six


def cuda_graphs(device: torch.device) -> Record:
    """Functions as CUDA graphs. A function must have run before, so that nothing in it is made for the first time.

    They share one pool of memory: they are played one at a time, and what a play leaves is copied before the next.
    """
    pool, aside = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(function: Play) -> Play:
        graph = torch.cuda.CUDAGraph()
        # On the model's own device: what runs on another than the current one is not recorded, and nobody says so.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=aside):
            function()
        return graph.replay

    return record


@dataclass
class _Recording:
    """One shape of forward. inputs are copied into, then `play` leaves the flow in `result`.

    forward: what was recorded. A graph knows addresses only: whose tensors lie there must live as long as it does, the
    store among them, which the key names by number.
    """

    inputs: list[Tensor]
    context: CrossAttentionCache
    shown: CrossAttentionCache
    result: dict[str, Tensor]
    forward: Play
    play: Play

    def show(self, context: CrossAttentionCache) -> None:
        """Make `context` the one that is read; kept alive, so that no other is taken for it."""
        if context is not self.shown:
            for kept, new in zip(self.context.tensors(), context.tensors(), strict=True):
                kept.copy_(new)
            self.shown = context


class CUDAGraphTransformer:
    """A student, called as `CausalModel` calls it, that plays recordings where shapes no longer change.

    record: what makes a recording of a function; a test on the CPU gives one that returns the function.
    """

    def __init__(self, student: Any, record: Record | None = None) -> None:
        self.student, self.record = student, record or cuda_graphs(student.device)
        self.dtype: torch.dtype = student.dtype
        self._known: dict[tuple, _Recording | None] = {}

    def __call__(
        self, x: Tensor, t: Tensor, text: Tensor, image: Tensor | None, *, scope: MemoryPass,
        context: CrossAttentionCache | None, return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        """Flow [B, C, F, H, W] of latents x at timesteps t [B, F]; see `SaltTransformer3DModel.forward`."""

        def call(x: Tensor, t: Tensor, scope: MemoryPass, context: CrossAttentionCache | None) -> Tensor:
            (flow,) = self.student(x, t, text, image, return_dict=False, scope=scope, context=context)
            return flow

        shapes = () if context is None else tuple(made.shape for made in context.tensors())
        if context is None or not shapes or not settled(scope):
            return (call(x, t, scope, context),)
        key = (id(scope.store), x.shape, x.dtype, shapes, *(_shape(s) for s in scope.segments))
        if key not in self._known:  # the first of a shape warms up whatever is made once
            while len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = None
            return (call(x, t, scope, context),)
        recording = self._known.pop(key) or self._recorded(call, x, t, scope, context)
        self._known[key] = recording  # behind the others: those that are used longest ago go first
        recording.show(context)
        for kept, new in zip(recording.inputs, _inputs(x, t, scope), strict=True):
            kept.copy_(new)
        recording.play()
        return (recording.result["flow"].clone(),)

    def _recorded(
        self, call: Callable[[Tensor, Tensor, MemoryPass, CrossAttentionCache | None], Tensor], x: Tensor, t: Tensor,
        scope: MemoryPass, context: CrossAttentionCache,
    ) -> _Recording:  # fmt: skip
        x, t, scope, own = x.clone(), t.clone(), _still(scope), context.copied()
        result: dict[str, Tensor] = {}

        def function() -> None:
            result["flow"] = call(x, t, scope, own)

        return _Recording(_inputs(x, t, scope), own, context, result, function, self.record(function))


def settled(scope: MemoryPass) -> bool:
    """Whether the shapes of this pass will come again, block after block: the window is full."""
    policy = scope.memory.policy
    if policy.window is None or policy.residence == "cpu" or torch.is_grad_enabled():
        return False
    return all(s.kept_slots.shape[0] + len(s.frames) == policy.window for s in scope.segments)


def _shape(segment: Any) -> tuple:
    """What must be the same for a recording to serve a segment; contents of tensors may differ."""

    def kind(value: Any) -> Any:
        if isinstance(value, Rotary):
            return ("rotary", value.cos.shape)
        return ("tensor", value.shape) if isinstance(value, Tensor) else value

    return tuple(kind(getattr(segment, f.name)) for f in fields(segment) if f.name != "frames")


def _still(scope: MemoryPass) -> MemoryPass:
    """A pass of the same shape whose tensors are its own, to be written to."""

    def own(value: Any) -> Any:
        if isinstance(value, Rotary):
            return Rotary(*(part.clone() for part in value))
        return value.clone() if isinstance(value, Tensor) else value

    segments = [replace(s, **{f.name: own(getattr(s, f.name)) for f in fields(s)}) for s in scope.segments]
    # Of the memory itself a pass asks no more than kind and shape; recordings must not keep it from dying.
    return MemoryPass(scope.memory.empty_like(), scope.store, segments)


def _inputs(x: Tensor, t: Tensor, scope: MemoryPass) -> list[Tensor]:
    """All tensors that differ from one forward of a shape to the next, in a fixed order."""
    found = [x, t]
    for segment in scope.segments:
        for field in fields(segment):
            value = getattr(segment, field.name)
            found += list(value) if isinstance(value, Rotary) else [value] if isinstance(value, Tensor) else []
    return found
