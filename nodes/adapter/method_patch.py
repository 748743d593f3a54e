"""Host 1: a module's method replaced for the length of a model call, and put back whatever ends it.

On the instance, so nothing is left on the MODEL: clones, evictions and other workflows never see it. One function
stands in for all layers and runs, so that a compiled model finds the same code and compiles nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any


@contextmanager
def standing_in(
    modules: Sequence[Any], function: Callable[..., Any], name: str, told: Sequence[Any], method: str = "forward"
) -> Iterator[None]:
    """While open, `function` is every module's `method`; it finds what it is told as the module's attribute `name`."""
    before = [module.__dict__.get(method) for module in modules]
    try:
        for module, what in zip(modules, told, strict=True):
            setattr(module, name, what)
            setattr(module, method, MethodType(function, module))
        yield
    finally:
        for module, theirs in zip(modules, before, strict=True):
            module.__dict__.pop(name, None)
            module.__dict__.pop(method, None)
            if theirs is not None:
                setattr(module, method, theirs)
