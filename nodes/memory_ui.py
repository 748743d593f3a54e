"""The numbers of the memory bar that the front end draws, as part of a node's `ui` output."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .io_types import ClipMemory


@dataclass(frozen=True)
class MemoryBar:
    """policy as text, latent frames held, sizes in latent frames, bytes of all branches."""

    policy: str
    held: list[int]
    sink: int
    window: int | None
    next_frame: int
    bytes: int
    layers: int


def memory_ui(clip: ClipMemory) -> dict[str, list[dict[str, object]]]:
    """{"salt_memory": [a MemoryBar]}."""
    memory = clip.memory
    policy, size = memory.policy, sum(branch.nbytes for branch in clip.branches)
    held, layers = list(memory.held), memory.geometry.layers
    bar = MemoryBar(str(policy), held, policy.sink, policy.window, memory.next_frame, size, layers)
    return {"salt_memory": [asdict(bar)]}
