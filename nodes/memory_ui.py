"""Host 1: what the front end draws as a memory bar, as a node's `ui` carries it."""

from __future__ import annotations

from typing import Any

from .io_types import ClipMemory


def memory_ui(clip: ClipMemory) -> dict[str, list[dict[str, Any]]]:
    """{"salt_memory": [...]}: policy as text, latent frames held, sizes in latent frames, bytes of all branches."""
    memory = clip.memory
    branches = [m for m in (memory, clip.negative) if m is not None]
    bar = {
        "policy": str(memory.policy),
        "held": list(memory.held),
        "sink": memory.policy.sink,
        "window": memory.policy.window,
        "next_frame": memory.next_frame,
        "bytes": sum(m.nbytes for m in branches),
        "layers": memory.geometry.layers,
    }
    return {"salt_memory": [bar]}
