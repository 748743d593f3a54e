"""The description in a memory file, with the types and ranges of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..io.fields import Between, Index, shown
from .far_files import FarDescription
from .overwritten import OverwriteState
from .policy import MemoryPolicy
from .shots import Shots
from .store import MemoryGeometry


@dataclass(frozen=True)
class MemoryDescription:
    """Everything of a `KVMemory` but its tensors. shots, slots (of `held`): of kind `shots` alone.

    Raises ValueError for frames that the policy cannot hold.
    """

    policy: MemoryPolicy
    geometry: MemoryGeometry
    dtype: Literal["float64", "float32", "float16", "bfloat16"]
    fingerprint: str
    held: tuple[Index, ...]
    origin: Index
    next_frame: Index
    context_sigma: Annotated[float, Between(0, 1)]
    given: Index = 0
    shots: Shots = ()
    slots: tuple[Index, ...] = ()
    overwritten: OverwriteState | None = None
    far: FarDescription | None = None

    def __post_init__(self) -> None:
        frames = [self.origin - 1, *self.held, self.next_frame]
        if not all(a < b for a, b in zip(frames, frames[1:], strict=False)):
            raise ValueError(f"held: found {shown(self.held)}, expected rising frames from origin to next_frame")
        if self.policy.keeps_last_step:
            if self.overwritten is None:
                raise ValueError("overwritten: is missing, expected which slots come next")
            self.overwritten.check(self.policy, self.geometry)
        if (self.policy.kind == "far") != (self.far is not None):
            raise ValueError(f"far: found {shown(self.far)} for the policy {self.policy}")
        most = self.policy.slots(self.next_frame - self.origin)
        if self.far is not None:
            most = self.next_frame - self.origin
            self.far.check(self.policy.window or 0, len(self.held))
        keeps_all = self.policy.window is None or self.far is not None
        if len(self.held) > most or (keeps_all and len(self.held) < most):
            raise ValueError(f"held: found {len(self.held)} frames, expected {most} for {self.policy}")
        self._check_shots(most)

    def _check_shots(self, most: int) -> None:
        is_shots = self.policy.kind == "shots"
        if len(set(self.slots)) != (len(self.held) if is_shots else 0) or any(slot >= most for slot in self.slots):
            expected = f"one below {most} for each held frame" if is_shots else "none"
            raise ValueError(f"slots: found {shown(self.slots)}, expected {expected}")
        starts = [shot.start for shot in self.shots]
        if starts != sorted(set(starts)) or (starts and not (is_shots and starts[-1] <= self.next_frame)):
            raise ValueError(f"shots: found starts {shown(starts)}, expected rising frames of a memory with shots")
