"""Replaces a method of modules for the length of a model call, and restores it whatever ends the call.

The replacement sits on the instance, so nothing is left on the MODEL: clones, evictions and other workflows never see
it. One function replaces the method of all layers and in all runs, so that a compiled model finds the same code and
is not recompiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Protocol

from torch import nn


class WanAttention(Protocol):
    """What ComfyUI's self- and cross-attention of Wan have in common, as replaced methods see it."""

    num_heads: int
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    norm_q: nn.Module
    norm_k: nn.Module


@contextmanager
def replaced_method(
    modules: Sequence[nn.Module],
    function: Callable[..., object],
    attribute: str,
    values: Sequence[object],
    method: str = "forward",
) -> Iterator[None]:
    """While open, `function` is the `method` of every module; module i also has `attribute`, with values[i]."""
    before = [module.__dict__.get(method) for module in modules]
    try:
        for module, value in zip(modules, values, strict=True):
            setattr(module, attribute, value)
            setattr(module, method, MethodType(function, module))
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            module.__dict__.pop(attribute, None)
            module.__dict__.pop(method, None)
            if original is not None:
                setattr(module, method, original)
