"""Settings of a student: what it was trained for, stored with its weights. The engine's shared constants."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from .io.fields import Between, read_fields
from .memory import MemoryPolicy
from .schedule import STEP_LISTS, Schedule, Stepping, StepRule, first_block

SHOT_PREFIX = "The scene transitions. "  # of LongLive 2.0, before the prompt of a shot's first block
WAN22_CHANNELS = 48  # of the latents of Wan 2.2's VAE
FPS = 16  # pixel frames per second of Wan 2.1's clips and of salt-tiny's
WAN22_FPS = 24  # of Wan 2.2 TI2V's
TINY_NAME = "salt-tiny"
TINY_FOLDER = Path(__file__).parent / "assets" / "tiny"  # diffusers folder of the embedded model


@dataclass(frozen=True)
class StudentSpec:
    """What a student was trained for.

    frames_per_block: latent frames; 0 for a bidirectional student (no blocks, no memory). steps, shift, rule: of its
    `Schedule`; stepping: between them. policy: of its memory. independent_first_frame: the first block of a clip is one
    latent frame. fps: pixel frames per second. shot_prefix: before the prompt of a shot's first block.
    gives_first_frame: an image that starts a clip is the first frame of its first block (Wan 2.2 TI2V). first_steps: of
    its `Schedule`, () for the same steps in every block.
    """

    frames_per_block: Annotated[int, Between(0, 10**4)] = 3
    steps: tuple[float, ...] = STEP_LISTS[4]
    shift: float = 5.0
    policy: MemoryPolicy = field(default_factory=MemoryPolicy)
    independent_first_frame: bool = False
    rule: StepRule = "wan"
    stepping: Stepping = "sde"
    fps: Annotated[int, Between(1, 120)] = FPS
    shot_prefix: str = ""
    gives_first_frame: bool = False
    first_steps: tuple[float, ...] = ()

    @property
    def first_block(self) -> int:
        """Latent frames of a clip's first block where it is unlike the others, else 0."""
        return first_block(self.frames_per_block, self.independent_first_frame, self.rule)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.shift, self.rule, self.first_steps)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> StudentSpec:
        """The inverse of `to_dict`; other keys are passed over. Raises FieldError (a ValueError) for a wrong value."""
        spec = read_fields(cls, values)
        spec.schedule  # noqa: B018 (checks steps and shift)
        return spec
