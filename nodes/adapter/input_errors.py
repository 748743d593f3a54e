"""Errors about the engine's fields, phrased with the names of widgets and sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...salt.errors import InputError

# Fields of the engine that nodes call otherwise.
WIDGETS = {
    "guidance": "cfg",
    "guidance_scale": "cfg",
    "negative_prompt": "negative",
    "num_inference_steps": "nfe",
    "num_frames": "seconds",
    "prompt": "positive",
    "prompt_schedule": "prompts",
    "memory_policy": "policy",
    "image": "start_image",
    "initial_latents": "latents",
    "history_latents": "latents",
}


@contextmanager
def widget_names() -> Iterator[None]:
    """While open, or on a decorated function: an InputError about a field of the engine names the widget instead."""
    try:
        yield
    except InputError as error:
        if error.field not in WIDGETS:
            raise
        raise InputError(WIDGETS[error.field], error.problem, error.value) from None
