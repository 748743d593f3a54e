"""The description in a memory file, with the types and ranges of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..io.fields import Between, Index, shown
from .policy import MemoryPolicy
from .store import MemoryGeometry


@dataclass(frozen=True)
class MemoryDescription:
    """Everything of a `KVMemory` but its tensors. Raises ValueError for frames that the policy cannot hold."""

    policy: MemoryPolicy
    geometry: MemoryGeometry
    dtype: Literal["float64", "float32", "float16", "bfloat16"]
    fingerprint: str
    held: tuple[Index, ...]
    origin: Index
    next_frame: Index
    context_sigma: Annotated[float, Between(0, 1)]
    given: Index = 0

    def __post_init__(self) -> None:
        frames = [self.origin - 1, *self.held, self.next_frame]
        if not all(a < b for a, b in zip(frames, frames[1:], strict=False)):
            raise ValueError(f"held: found {shown(self.held)}, expected rising frames from origin to next_frame")
        most = self.policy.slots(self.next_frame - self.origin)
        if len(self.held) > most or (self.policy.window is None and len(self.held) < most):
            raise ValueError(f"held: found {len(self.held)} frames, expected {most} for {self.policy}")
