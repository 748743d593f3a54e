"""What a caller asks of the pipeline, and how its lengths, prompts and seeds are read. Plain values; no model here."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..conditioning import Switch
from ..memory import KVMemory, MemoryPolicy
from ..schedule import Schedule, step_list
from ..spec import StudentSpec
from .start_image import Picture

FPS = 16
DEFAULT_SECONDS = 5.0

PromptAt = tuple[float, str] | tuple[float, str, Switch]


@dataclass(frozen=True, kw_only=True)
class PipelineInputs:
    """Every option of `SaltPipeline.__call__` and `SaltPipeline.stream`, except for the form of the output.

    num_frames or seconds: length of the new part, in pixel frames (an exact fit) or in seconds at 16 frames per second
        (rounded up to whole blocks); 5 seconds if neither is given. A start counts, what `memory` holds does not.
    height, width: pixels; the pipeline's own size by default. Where a picture starts the clip, it is cut to them.
    num_inference_steps: NFE per block; or steps: the list itself, falling, in (0, 1000]. Default: the student's.
    shift: warp of the steps. stepping: `sde` or `ode`; a bidirectional student defaults to ode.
    memory_policy: a `MemoryPolicy` or its line (`sink:3,window:12`). Default: the student's.
    guidance_scale: 1 = off. negative_prompt: for guidance.
    seed: one, or one per prompt; or generator, whose initial seed is taken. Random if neither is given.
    image: a picture or video that the clip starts from; or initial_latents [B, 16, F, H, W], normalised.
    memory: a memory to go on from (it is written to); negative_memory: of the unconditional branch, with guidance.
    history_latents: [B, 16, F, H, W], the latest latents of the clip in `memory`: they let the decoder go on without a
        seam, and a prompt change recache.
    prompt_schedule: (seconds, text) or (seconds, text, switch) with switch keep, recache or cut; seconds of the whole
        clip, what `memory` holds included.
    fuse: one forward for a block's context pass and the next block's first step (same result).
    """

    num_frames: int | None = None
    seconds: float | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    steps: Sequence[float] | None = None
    shift: float | None = None
    stepping: str | None = None
    memory_policy: MemoryPolicy | str | None = None
    guidance_scale: float = 1.0
    negative_prompt: str | Sequence[str] = ""
    seed: int | Sequence[int] | None = None
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    image: Picture | None = None
    initial_latents: Tensor | None = None
    memory: KVMemory | None = field(default=None, repr=False)
    negative_memory: KVMemory | None = field(default=None, repr=False)
    history_latents: Tensor | None = field(default=None, repr=False)
    prompt_schedule: Sequence[PromptAt] = ()
    fuse: bool = False

    def __post_init__(self) -> None:
        for one, other in (
            ("num_frames", "seconds"),
            ("num_inference_steps", "steps"),
            ("seed", "generator"),
            ("image", "initial_latents"),
        ):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other}: found both, expected one of them")
        for name in ("height", "width"):
            if (found := getattr(self, name)) is not None and found < 1:
                raise ValueError(f"{name}: found {found} pixels, expected 1 or more")
        if self.memory is not None and self.initial_latents is not None:
            raise ValueError("memory and initial_latents: found both, expected one of them")
        if self.memory is not None and self.memory_policy is not None:
            raise ValueError("memory_policy: found it beside a memory, which has its own, expected one of them")

    def schedule(self, spec: StudentSpec) -> Schedule:
        steps = self.steps if self.steps is not None else spec.steps
        if self.num_inference_steps is not None:
            steps = step_list(self.num_inference_steps)
        return Schedule(tuple(steps), spec.shift if self.shift is None else self.shift)

    def policy(self, spec: StudentSpec) -> MemoryPolicy:
        if self.memory is not None:
            return self.memory.policy
        if isinstance(self.memory_policy, str):
            return MemoryPolicy.parse(self.memory_policy)
        return self.memory_policy or spec.policy

    def seeds(self) -> int | list[int]:
        """The seed, or one per prompt."""
        if self.generator is not None:
            if isinstance(self.generator, torch.Generator):
                return self.generator.initial_seed()
            return [g.initial_seed() for g in self.generator]
        if self.seed is None:
            return secrets.randbits(32)
        return self.seed if isinstance(self.seed, int) else list(self.seed)


@dataclass(frozen=True)
class Length:
    """A clip's length. frames: new latent frames to make; total: pixel frames that come out; note: what was rounded."""

    frames: int
    total: int
    note: str = ""

    @property
    def seconds(self) -> float:
        return self.total / FPS


def plan_length(
    request: PipelineInputs,
    spec: StudentSpec,
    *,
    given: int = 0,
    extends: bool = False,
    seamless: bool = False,
    temporal_scale: int = 4,
) -> Length:
    """How many latent frames fill the length asked for.

    given: latent frames of a start; extends: the rollout goes on from a memory; seamless: the decoder goes on too.

    Raises ValueError when `num_frames` is not filled by whole blocks, naming the nearest numbers that are, and for
    seconds that the start alone fills.
    """
    lead = 0 if seamless else temporal_scale - 1  # the first latent frame of a clip is a single pixel frame
    block = max(spec.frames_per_block, 1)
    first = 1 if spec.independent_first_frame and not extends and not given else 0

    def pixels(blocks: int) -> int:
        return (given + first + blocks * block) * temporal_scale - lead

    if request.num_frames is not None:
        wanted = float(request.num_frames)
    else:
        wanted = DEFAULT_SECONDS if request.seconds is None else request.seconds
        if not (math.isfinite(wanted) and wanted > 0):
            raise ValueError(f"seconds: found {wanted:g}, expected a number above 0")
        wanted = math.ceil(wanted * FPS - 1e-6)
        begun = given * temporal_scale - lead
        if given and wanted <= begun:
            raise ValueError(f"seconds: found {wanted / FPS:g}, expected more than the start's {begun / FPS:.4g} s")
    exact = ((wanted + lead) / temporal_scale - given - first) / block
    least = 0 if first else 1
    below, above = max(math.floor(exact), least), max(math.ceil(exact), least)
    if request.num_frames is not None and pixels(above) != request.num_frames:
        near = " or ".join(dict.fromkeys(str(pixels(n)) for n in (below, above)))
        after = f" after a start of {given} latent frames" if given else ""
        raise ValueError(
            f"num_frames: found {request.num_frames}, expected {near} "
            f"(blocks of {block * temporal_scale} frames{after})"
        )
    total = pixels(above)
    note = ""
    if request.seconds is not None and abs(total / FPS - request.seconds) > 1 / FPS + 1e-6:
        made = f"{total} frames ({total / FPS:g} s)"
        note = f"{request.seconds:g} s rounded up to {made}, whole blocks of {block * temporal_scale}"
    return Length(first + above * block, total, note)


def change_frame(seconds: float, temporal_scale: int = 4) -> int:
    """The latent frame that shows the moment `seconds` of a clip. Raises ValueError unless above 0."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"prompt_schedule: found a change at {seconds:g} s, expected above 0")
    return (round(seconds * FPS) + temporal_scale - 1) // temporal_scale


def prompt_list(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several as a list. Raises ValueError for none."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("prompt: found none, expected at least one")
    return prompts
