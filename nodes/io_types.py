"""Host 1: the pack's own socket types, what travels through them, and a schema that older ComfyUI versions take too."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..salt.memory import KVMemory

# Widgets that few need, folded away by a front end that can (core 0.9 and newer know the word).
ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input).parameters else {}
Memory = io.Custom("SALT_MEMORY")
Policy = io.Custom("SALT_MEMORY_POLICY")
Prompts = io.Custom("SALT_PROMPTS")


@dataclass(frozen=True)
class ClipMemory:
    """What travels on a SALT_MEMORY wire: the KV memory of a clip, and the unconditional branch's where CFG was used.

    ComfyUI keeps node outputs and hands one to many nodes, so a memory on a wire is never written: whoever goes on
    from it takes `taken`, a copy. Between runs it lies in main memory, or on a device that has plenty (see `spare`).
    """

    memory: KVMemory
    negative: KVMemory | None = None

    def taken(self, device: torch.device | str) -> ClipMemory:
        """A copy of its own on `device`, to be written."""
        negative = None if self.negative is None else self.negative.copied(device)
        return ClipMemory(self.memory.copied(device), negative)

    def rested(self) -> ClipMemory:
        """A copy in main memory, for the wire."""
        return self.taken("cpu")


def schema(**settings: Any) -> io.Schema:
    """io.Schema, without the fields that this ComfyUI does not know yet (search aliases before 0.9)."""
    known = {f.name for f in dataclasses.fields(io.Schema)}
    return io.Schema(**{key: value for key, value in settings.items() if key in known})
