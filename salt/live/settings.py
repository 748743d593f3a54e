"""Settings of a live session, and the errors of a value out of range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..errors import InputError
from ..io.fields import Between
from ..memory import MemoryPolicy
from ..schedule import Stepping
from ..video_in.strength import DEFAULT_STRENGTH, check_strength
from .adapters import LoraStrength, acting, check_strengths
from .controls import Guidance, Nfe, Pace, Pacing, Policy, Seed, check_prompt_length
from .prompt_blend import PromptMix
from .steering import Steering

MAX_BUDGET = 2**38  # bytes
MAX_LEAD = 64  # blocks


@dataclass(frozen=True)
class LiveSettings:
    """What a live session begins with.

    prompt, negative, seed, guidance: as in a rollout; controls change them, except for `negative`. nfe: model
    evaluations per block, 1, 2, 4 or 8; None for the student's own steps. policy: of the memory, as text; None for the
    student's, or that of the memory that the session goes on from. pace, lead: `realtime` makes blocks up to `lead`
    blocks before the fastest viewer, `free` as fast as it can. rewind_budget: bytes of main memory for what rewinding
    needs; None for room for some snapshots. frames: latent frames of the clip, after which the session ends by itself;
    None for no end. loras: those of the loaded LoRAs that act; None as the model has them. stepping: None for the
    student's. strength: how far pictures of a camera or a file may be changed.
    Raises InputError for a value out of range.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    nfe: int | None = None
    guidance: float = 1.0
    policy: str | None = None
    pace: Pacing = "realtime"
    lead: Annotated[int, Between(1, MAX_LEAD)] = 1
    rewind_budget: Annotated[int, Between(0, MAX_BUDGET)] | None = None
    frames: Annotated[int, Between(1, 10**9)] | None = None
    loras: tuple[LoraStrength, ...] | None = None
    strength: Annotated[float, Between(0, 1)] = DEFAULT_STRENGTH
    stepping: Stepping | None = None
    refuses_unknown: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_prompt_length("prompt", self.prompt)
        check_prompt_length("negative", self.negative)
        Seed(self.seed)
        Guidance(self.guidance)
        Pace(self.pace)
        check_strength(self.strength)
        check_strengths("loras", self.loras or ())
        if self.nfe is not None:
            Nfe(self.nfe)
        if self.policy is not None:
            Policy(self.policy)
        for name, low, high in (("lead", 1, MAX_LEAD), ("rewind_budget", 0, MAX_BUDGET), ("frames", 1, 10**9)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(name, f"found {value}, expected {low} to {high}")

    def steering(self, own_policy: MemoryPolicy) -> Steering:
        """Of the first block. own_policy: the student's."""
        policy = own_policy if self.policy is None else MemoryPolicy.parse(self.policy)
        prompt = PromptMix(((self.prompt, 1.0),))
        return Steering(
            prompt,
            self.seed,
            self.nfe,
            self.guidance,
            policy,
            shown=prompt,
            loras=acting(self.loras or ()),
            strength=self.strength,
        )
