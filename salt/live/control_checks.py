"""Checks of a control against the model of a session."""

from __future__ import annotations

from ..memory import MemoryPolicy
from .adapters import check_loaded
from .controls import Control, Loras, Policy, Prompt
from .live_model import LiveModel


def check_control(control: Control, live_model: LiveModel) -> None:
    """Raise InputError for a prompt that cannot be encoded, a LoRA that is not loaded, and a memory policy that the
    model does not know."""
    if isinstance(control, Prompt):
        for prompt in control.prompts:
            live_model.check_prompt(prompt.text)
    if isinstance(control, Policy):
        live_model.new_memory(MemoryPolicy.parse(control.policy))
    if isinstance(control, Loras):
        check_loaded(live_model.info.loras, control.adapters)
