"""Errors about the engine's fields, phrased with the names of widgets and sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...salt.errors import InputError

# Fields of the engine that the nodes call otherwise.
WIDGETS = {
    "changes": "prompts",
    "prompt_schedule": "prompts",
    "frames": "seconds",
    "guidance": "cfg",
    "history_latents": "latents",
    "memory_policy": "policy",
    "initial_latents": "latents",
}


UNCONNECTED = object()  # default of a socket in `validate_inputs`, which core leaves out; a connected one is None


def accepted(check: Callable[[str], object], value: str) -> bool | str:
    """The answer of a node's `validate_inputs`: True, or what `check` says of the value or the file."""
    try:
        check(value)
    except (InputError, FileNotFoundError) as error:
        return str(error)
    return True


@contextmanager
def widget_names(**widgets: str) -> Iterator[None]:
    """While open, or on a decorated function: an InputError about a field of the engine names the widget instead.

    widgets: fields whose widget on this node is another than in WIDGETS.
    """
    try:
        yield
    except InputError as error:
        widget = {**WIDGETS, **widgets}.get(error.field, error.field)
        if widget == error.field:
            raise
        raise InputError(widget, error.problem, error.value) from None
