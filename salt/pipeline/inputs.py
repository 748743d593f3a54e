"""Arguments of a pipeline call, and how its lengths, prompts and seeds are read. Plain values; no model here."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Switch
from ..errors import InputError
from ..memory import KVMemory, MemoryPolicy
from ..noise import batch_seeds
from ..schedule import Schedule, Stepping, step_list
from ..spec import FPS, StudentSpec
from .source_video import SourceVideo
from .start_image import StartImage

DEFAULT_SECONDS = 5.0
EXCLUSIVE = (
    ("prompt", "prompt_embeds"),
    ("negative_prompt", "negative_prompt_embeds"),
    ("num_frames", "seconds"),
    ("num_inference_steps", "steps"),
    ("num_first_steps", "first_steps"),
    ("seed", "generator"),
    ("image", "initial_latents"),
    ("initial_latents", "memory"),
    ("video", "image"),
    ("video", "initial_latents"),
)
VIDEO_AND_MEMORY = (
    "cannot be combined with `memory`: a video is encoded from its own first frame on, which stands for one picture, "
    "and a block that goes on from a memory for four a latent frame; a live session goes on from one with a video"
)

PromptAt = tuple[float, str] | tuple[float, str, Switch] | tuple[float, str, Switch, bool]


@dataclass(frozen=True, kw_only=True)
class PipelineInputs:
    """Every argument of `SaltPipeline.__call__` and `SaltPipeline.stream`, except for callbacks and the output's form.

    prompt: one text or several; or prompt_embeds [P, L, D], as `SaltPipeline.encode_prompt` returns them.
    negative_prompt: one, or one per prompt, for guidance (default: the empty text); or negative_prompt_embeds.
    height, width: pixels; the pipeline's own size by default. An image that starts the clip is cut to them.
    num_frames or seconds: length of the new part, in pixel frames (an exact fit) or in seconds of the student's frame
        rate (rounded up to whole blocks); 5 seconds by default. The frames of `image` or `initial_latents` count,
        those that `memory` holds do not.
    num_inference_steps: model evaluations per block; or steps: the list itself, falling, in (0, 1000]. Default: the
        student's. num_first_steps: evaluations of the first block that the clip samples; or first_steps: their list.
        Default: the student's. They have an effect where they are more than the others'. shift: warp of the steps.
        stepping: `sde`, `ode` or `unipc`; default: the student's, `ode` for
        bidirectional models.
    guidance_scale: classifier-free guidance, 1 = off.
    num_videos_per_prompt: clips of every prompt; the clips of one prompt stand side by side in the batch.
    generator: one for all clips, or one per clip. Every clip's seed is drawn from it (`clip_seeds`).
    seed: an integer (the clips of a batch take seed, seed + 1, ...), or one per clip. Random without both.
    latents: [B, C, F, H, W], initial noise of the new latent frames; the re-noise between steps is still drawn.
    image: an image or video that the clip starts from; or initial_latents [B, C, F, H, W], normalised.
    video: a video that is changed: its noised latents begin every block. A file, frames or a tensor
        (`salt.pipeline.source_video.open_video`). Without a length, the clip has the whole blocks that it fills.
    strength: how far it may be changed, 0 (not at all) to 1 (nothing of it is left); 0.5 by default.
    memory: a memory to extend (it is written to); negative_memory: of the unconditional branch, with guidance.
    memory_policy: a `MemoryPolicy` or its text (`sink:3,window:12`). Default: the student's.
    history_latents: [B, C, F, H, W], the latest latents of the clip in `memory`: with them the decoder goes on without
        a seam, and a prompt change can recache.
    prompt_schedule: (seconds, text), (seconds, text, switch) or (seconds, text, switch, keep_sink) as in
        `PromptChange`; seconds of the whole clip, what `memory` holds included.
    fuse: one forward for a block's context pass and the next block's first step (same result).
    Raises InputError for arguments that exclude each other, and for sizes below 1.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    seconds: float | None = None
    num_inference_steps: int | None = None
    steps: Sequence[float] | None = None
    num_first_steps: int | None = None
    first_steps: Sequence[float] | None = None
    shift: float | None = None
    stepping: Stepping | None = None
    guidance_scale: float = 1.0
    num_videos_per_prompt: int = 1
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    seed: int | Sequence[int] | None = None
    latents: Tensor | None = field(default=None, repr=False)
    image: StartImage | None = None
    initial_latents: Tensor | None = field(default=None, repr=False)
    video: SourceVideo | None = field(default=None, repr=False)
    strength: float | None = None
    memory: KVMemory | None = field(default=None, repr=False)
    negative_memory: KVMemory | None = field(default=None, repr=False)
    memory_policy: MemoryPolicy | str | None = None
    history_latents: Tensor | None = field(default=None, repr=False)
    prompt_schedule: Sequence[PromptAt] = ()
    fuse: bool = False
    prompt_embeds: Tensor | None = field(default=None, repr=False)
    negative_prompt_embeds: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, other in EXCLUSIVE:
            if getattr(self, name) is not None and getattr(self, other) is not None:
                raise InputError(name, f"cannot be combined with `{other}`")
        if self.video is not None and self.memory is not None:
            raise InputError("video", VIDEO_AND_MEMORY)
        if self.video is None and self.strength is not None:
            raise InputError("strength", "has no effect without `video`")
        for name, unit in (("height", " pixels"), ("width", " pixels"), ("num_videos_per_prompt", "")):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(name, f"found {value}{unit}, expected 1 or more")
        if self.memory is not None and self.memory_policy is not None:
            raise InputError("memory_policy", "cannot be combined with an existing memory, which has its own policy")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> PipelineInputs:
        """The inputs among the local variables of a function whose parameters have these names."""
        return cls(**{f.name: arguments[f.name] for f in fields(cls)})

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    def prompt_count(self) -> int:
        """How many prompts there are. Raises InputError for none."""
        if self.prompt_embeds is not None:
            return self.prompt_embeds.shape[0]
        return len(prompt_list(self.prompt))

    def schedule(self, spec: StudentSpec) -> Schedule:
        steps = self.steps if self.steps is not None else spec.steps
        if self.num_inference_steps is not None:
            steps = step_list(self.num_inference_steps, spec.rule)
        first = self.first_steps if self.first_steps is not None else spec.first_steps
        if self.num_first_steps is not None:
            first = step_list(self.num_first_steps, spec.rule)
        shift = spec.shift if self.shift is None else self.shift
        return Schedule(spec.steps, shift, spec.rule, tuple(first)).with_steps(tuple(steps))

    def policy(self, spec: StudentSpec) -> MemoryPolicy:
        if self.memory is not None:
            return self.memory.policy
        if isinstance(self.memory_policy, str):
            return MemoryPolicy.parse(self.memory_policy)
        return self.memory_policy or spec.policy

    def clip_seeds(self, clips: int) -> tuple[int, ...]:
        """One seed per clip of the batch.

        A `generator` gives each clip a seed of 63 bits, drawn on the generator's own device: its state decides the
        clip, and the same generator goes on to other clips in the next call. Noise is then seeded per block as with
        `seed`, so a block does not depend on the clip's length. Raises InputError for another number than the clips.
        """
        if isinstance(self.generator, torch.Generator):
            return tuple(_draw_seed(self.generator) for _ in range(clips))
        if self.generator is not None:
            if len(self.generator) != clips:
                raise InputError("generator", f"found {len(self.generator)}, expected one, or one per clip ({clips})")
            return tuple(_draw_seed(generator) for generator in self.generator)
        return batch_seeds(secrets.randbits(32) if self.seed is None else self.seed, clips)


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


@dataclass(frozen=True)
class Length:
    """A clip's length. frames: new latent frames; total: pixel frames that come out; note: what was rounded."""

    frames: int
    total: int
    note: str = ""
    fps: int = FPS

    @property
    def seconds(self) -> float:
        return self.total / self.fps


def plan_length(
    inputs: PipelineInputs,
    spec: StudentSpec,
    *,
    start_frames: int = 0,
    extends: bool = False,
    seamless: bool = False,
    temporal_scale: int = 4,
) -> Length:
    """How many latent frames fill the length of `inputs`.

    start_frames: latent frames of an image or video start; extends: the rollout goes on from a memory; seamless: the
    decoder goes on too.

    Raises InputError when `num_frames` is not filled by whole blocks, naming the nearest numbers that are, and for
    seconds that the start alone fills.
    """
    lead = 0 if seamless else temporal_scale - 1  # the first latent frame of a clip is a single pixel frame
    block = max(spec.frames_per_block, 1)
    first = 0 if extends or start_frames else spec.first_block

    def pixels(blocks: int) -> int:
        return (start_frames + first + blocks * block) * temporal_scale - lead

    fps = spec.fps
    wanted = wanted_frames(inputs, fps)
    started = start_frames * temporal_scale - lead
    if inputs.num_frames is None and start_frames and wanted <= started:
        raise InputError("seconds", f"found {wanted / fps:g}, expected more than the start's {started / fps:.4g} s")
    exact = ((wanted + lead) / temporal_scale - start_frames - first) / block
    least = 0 if first else 1
    below, above = max(math.floor(exact), least), max(math.ceil(exact), least)
    if inputs.num_frames is not None and pixels(above) != inputs.num_frames:
        near = " or ".join(dict.fromkeys(str(pixels(n)) for n in (below, above)))
        after = f" after a start of {started} frames" if start_frames else ""
        raise InputError(
            "num_frames",
            f"found {inputs.num_frames}, expected {near} (blocks of {block * temporal_scale} frames{after})",
        )
    total = pixels(above)
    note = ""
    if inputs.seconds is not None and abs(total / fps - inputs.seconds) > 1 / fps + 1e-6:
        rounded = f"{total} frames ({total / fps:g} s)"
        note = f"{inputs.seconds:g} s rounded up to {rounded}, whole blocks of {block * temporal_scale}"
    return Length(first + above * block, total, note, fps)


def wanted_frames(inputs: PipelineInputs, fps: int = FPS) -> int:
    """Pixel frames that are asked for, before they are fitted to whole blocks. Raises InputError for bad seconds."""
    if inputs.num_frames is not None:
        return inputs.num_frames
    seconds = DEFAULT_SECONDS if inputs.seconds is None else inputs.seconds
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError("seconds", f"found {seconds:g}, expected a number above 0")
    return math.ceil(seconds * fps - 1e-6)


def change_frame(seconds: float, temporal_scale: int = 4, fps: int = FPS) -> int:
    """The latent frame that shows the moment `seconds` of a clip. Raises InputError unless above 0."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError("prompt_schedule", f"found a change at {seconds:g} s, expected above 0")
    return (round(seconds * fps) + temporal_scale - 1) // temporal_scale


def prompt_list(prompt: str | Sequence[str] | None) -> list[str]:
    """One prompt or several as a list. Raises InputError for none."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if not prompts:
        raise InputError("prompt", "found none, expected at least one")
    return prompts
