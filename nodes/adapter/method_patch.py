"""Replaces a method of modules for the length of a model call, and restores it whatever ends the call.

The replacement sits on the instance, so nothing is left on the MODEL: clones, evictions and other workflows never see
it. One function replaces the method of all layers and in all runs, so that a compiled model finds the same code and
is not recompiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Protocol, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class WanAttention(Protocol):
    """What ComfyUI's self- and cross-attention of Wan have in common, as replaced methods see it."""

    num_heads: int
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    norm_q: nn.Module
    norm_k: nn.Module


def unwrap_compiled(module: Module) -> Module:
    """The module inside torch.compile's wrapper, which forwards the setting of an attribute but not its removal."""
    return getattr(module, "_orig_mod", module)


def patched_method(module: nn.Module, method: str = "forward") -> Callable[..., object] | None:
    """What another node has put in the place of a method of this instance; None where it runs its class's own.

    ComfyUI leaves the class's own on the instance when it takes a patch back.
    """
    found = module.__dict__.get(method)
    return None if getattr(found, "__func__", found) is getattr(type(module), method) else found


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
