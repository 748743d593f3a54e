"""The numbers of the memory bar that the front end draws, as part of a node's `ui` output."""

from __future__ import annotations

from typing import Any

from .io_types import ClipMemory


def memory_ui(clip: ClipMemory) -> dict[str, list[dict[str, Any]]]:
    """{"salt_memory": [...]}: policy as text, latent frames held, sizes in latent frames, bytes of all branches."""
    memory = clip.memory
    bar = {
        "policy": str(memory.policy),
        "held": list(memory.held),
        "sink": memory.policy.sink,
        "window": memory.policy.window,
        "next_frame": memory.next_frame,
        "bytes": sum(branch.nbytes for branch in clip.branches),
        "layers": memory.geometry.layers,
    }
    return {"salt_memory": [bar]}
