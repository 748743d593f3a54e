"""From the widgets and sockets of the sampling nodes to a `RolloutPlan`, and the checks on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...salt.conditioning import PromptChange, keeps_no_sink
from ...salt.errors import InputError
from ...salt.memory import MemoryPolicy
from ...salt.rollout import RolloutSettings
from ...salt.schedule import Schedule, Stepping, check_steps, step_list
from ...salt.spec import StudentSpec
from ...salt.video_in.strength import DEFAULT_STRENGTH, settings_at
from ..io_types import AppliedPrompts, ClipMemory, Conditioning, Latent, TimedConditioning
from .clip_size import FRAMES_PER_LATENT, PATCH, check_latent_size, latent_size, pixel_size, size_text
from .comfy_model import latent_channels, pixels_per_latent, takes_image_channels
from .connections import check_rollout, check_start, no_prompt
from .core_guidance import evaluates_negative
from .head_encoder import needs_vae
from .input_errors import widget_names
from .model_sampling import patched_sampling, patched_shift
from .model_size import chosen_size, size_notes
from .patch_names import patch_name
from .rollout_plan import RolloutPlan
from .source_clip import source_clip
from .start_picture import NODE, encode_start_image, has_start_picture, start_picture
from .step_rule import student_stepping
from .streaming_vae import check_vae, is_wan_vae
from .student_spec import UNKNOWN, autoregressive_spec, known_spec

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from comfy_api.latest import InputImpl

STUDENT_STEPS, CUSTOM_STEPS = "student's", "custom"
THEN = ", then "  # between the evaluations of the clip's first block and those of the others
NFE = [STUDENT_STEPS, "1", "2", "4", "8", f"4{THEN}1", f"4{THEN}2", CUSTOM_STEPS]
STEPPING = ["sde", "ode"]


@dataclass(frozen=True)
class RolloutInputs:
    """The widgets and sockets that Salt Rollout and Salt Extend Video share."""

    model: ModelPatcher
    seconds: float
    seed: int
    nfe: str
    steps: str
    shift: float
    stepping: Stepping
    cfg: float
    frames_per_block: int
    positive: Conditioning | None = None
    prompts: list[TimedConditioning] | None = None
    negative: Conditioning | None = None
    vae: VAE | None = None
    video: Tensor | InputImpl.VideoFromComponents | None = None
    strength: float = DEFAULT_STRENGTH


@dataclass(frozen=True)
class ClipStart:
    """Where a clip starts or continues. size: latent (height, width).

    start: latents [B, C, F, H, W] that a new clip starts with. memory: of a clip to continue; history:
    its latents so far.
    """

    size: tuple[int, int]
    batch: int
    start: Tensor | None = None
    memory: ClipMemory | None = None
    history: Tensor | None = None


def schedule_of(nfe: str, steps: str, shift: float, spec: StudentSpec | None) -> Schedule:
    """The step list and shift that the widgets choose. Raises InputError naming the widget."""
    spec = spec or StudentSpec()
    shift = shift or spec.shift
    if nfe == STUDENT_STEPS:
        return Schedule(spec.steps, shift, spec.rule, spec.first_steps)
    if nfe != CUSTOM_STEPS:
        first, others = nfe.split(THEN) if THEN in nfe else ("", nfe)
        if first and spec.rule != "wan":
            raise InputError("nfe", f"found {nfe}, expected one number for students with the steps of {spec.rule}")
        first_steps = step_list(int(first)) if first else spec.first_steps
        return Schedule(spec.steps, shift, spec.rule, first_steps).with_steps(step_list(int(others), spec.rule))
    try:
        numbers = check_steps([float(s) for s in steps.replace(";", ",").split(",") if s.strip()], spec.rule)
        return Schedule(numbers, shift, spec.rule)
    except ValueError:
        expected = "expected falling numbers in (0, 1000], as 1000, 750, 500"
        raise InputError("steps", f"found {steps!r}, {expected}") from None


@widget_names()
def plan_rollout(inputs: RolloutInputs, clip: ClipStart, policy: MemoryPolicy | None) -> RolloutPlan:
    """The rollout that the inputs describe. Raises InputError naming the widget or socket."""
    from ...salt.pipeline.inputs import PipelineInputs, plan_length

    spec = autoregressive_spec(inputs.model, inputs.frames_per_block)
    check_connections(inputs, clip.memory, policy)
    if inputs.vae is not None and is_wan_vae(inputs.vae):
        check_vae(inputs.vae, latent_channels(inputs.model))
    extends = clip.memory is not None
    clip, given = first_frame_apart(clip, spec)
    length = plan_length(
        PipelineInputs(seconds=inputs.seconds),
        spec,
        start_frames=0 if clip.start is None else clip.start.shape[2],
        extends=extends,
        seamless=extends,
    )
    source = None
    if inputs.video is not None:
        check_source(inputs, clip)
        size = pixel_size(clip.size, pixels_per_latent(inputs.model))
        source = source_clip(inputs.video, size, clip.batch, length.frames, spec)
        length = replace(length, frames=source.frames)
    prompts = prompt_changes(inputs, spec)
    if clip.memory is not None and clip.history is None:
        # A change takes effect at the next block's start; after a cut a recache needs nothing from before.
        first = clip.memory.memory.next_frame - spec.frames_per_block
        due = [p.switch for p in prompts if first < p.frame <= first + length.frames and p.switch != "keep"]
        if due[:1] == ["recache"]:
            raise InputError("prompts", "with a recache after a memory need the clip so far connected to latents")
    settings = RolloutSettings(
        schedule_of(inputs.nfe, inputs.steps, inputs.shift, spec),
        student_stepping(inputs.stepping, spec),
        spec.frames_per_block,
        spec.independent_first_frame,
        inputs.cfg,
        fuse=not isinstance(inputs.prompts, AppliedPrompts),
    )
    if source is not None and spec.rule != "streamdiffusion2":
        settings = settings_at(settings, inputs.strength) or settings
    chosen = clip.memory.memory.policy if clip.memory is not None else policy or spec.policy
    chosen.check_block(spec.frames_per_block)
    if chosen.reencodes and inputs.vae is None:
        raise needs_vae(chosen)
    if clip.memory is not None and clip.history is None and clip.memory.memory.needs_history:
        raise InputError("latents", "must be connected: a memory that was rewound is rebuilt from the clip so far")
    return RolloutPlan(
        settings=settings,
        policy=chosen,
        prompts=prompts,
        frames=length.frames,
        size=clip.size,
        seed=inputs.seed,
        fps=spec.fps,
        batch=clip.batch,
        negative=inputs.negative if guides(inputs) else None,
        start=clip.start,
        given_frame=given,
        memory=clip.memory,
        history=clip.history,
        vae=inputs.vae,
        source=source,
        strength=inputs.strength,
        notes=[
            *notes_on_effect(inputs, clip, prompts, first_frame(clip) + length.frames, spec),
            *(
                [f"recache-sink has no effect on the sink: the memory {chosen} has none"]
                if keeps_no_sink(chosen, prompts)
                else []
            ),
            *([source.note] if source is not None and source.note else []),
        ],
    )


def check_source(inputs: RolloutInputs, clip: ClipStart) -> None:
    """Raise InputError for a video beside a start picture on the MODEL, and for a VAE or MODEL that cannot take it."""
    if clip.start is not None:
        raise InputError("video", f"cannot be connected where {NODE} has given the MODEL a start picture")
    assert inputs.vae is not None
    check_vae(inputs.vae, latent_channels(inputs.model))
    if takes_image_channels(inputs.model):
        raise InputError("video", "is not supported by image-to-video models")


def plan_clip(
    model: ModelPatcher,
    seconds: float,
    size: tuple[int, int],
    batch: int,
    *,
    policy: MemoryPolicy | None = None,
    memory: ClipMemory | None = None,
    start_image: Tensor | None = None,
    latents: Latent | None = None,
    **widgets: Any,
) -> RolloutPlan:
    """What Salt Rollout's inputs describe. size: width and height in pixels (0: the MODEL's own); widgets: the rest of
    `RolloutInputs`."""
    inputs = RolloutInputs(model, seconds, **widgets)
    given = {**widgets, "memory": memory, "start_image": start_image, "latents": latents}
    check_rollout({name for name, value in given.items() if value is not None}, inputs.cfg)
    still = 1
    if start_image is not None:
        still = still_length(policy or autoregressive_spec(model, inputs.frames_per_block).policy)
    clip = clip_of_inputs(model, inputs.vae, size, batch, memory, start_image, latents, still)
    return plan_rollout(inputs, clip, policy)


def still_length(policy: MemoryPolicy) -> int:
    """Latent frames that a start picture stands for: of a memory that is rebuilt, all that it is rebuilt from."""
    return (policy.window or 1) if policy.rebuilt else 1


def guides(inputs: RolloutInputs) -> bool:
    """Whether the unconditional branch is needed: by cfg, or by a node that takes part in guidance (CFGOverride)."""
    return inputs.cfg != 1 or (inputs.negative is not None and evaluates_negative(inputs.model))


def first_frame(clip: ClipStart) -> int:
    """Latent frame of the clip at which new frames begin."""
    before = 0 if clip.memory is None else clip.memory.memory.next_frame
    return before + (0 if clip.start is None else clip.start.shape[2])


def first_frame_apart(clip: ClipStart, spec: StudentSpec) -> tuple[ClipStart, Tensor | None]:
    """The clip without its start, and that, where it is one picture and the student's first block begins with it."""
    if spec.gives_first_frame and clip.start is not None and clip.start.shape[2] == 1:
        return replace(clip, start=None), clip.start
    return clip, None


def notes_on_effect(
    inputs: RolloutInputs,
    clip: ClipStart,
    prompts: list[PromptChange[Conditioning]],
    end: int,
    spec: StudentSpec,
) -> list[str]:
    """What the report says about inputs without effect on a clip of `end` latent frames.

    They are no errors: a graph may keep its negative prompt while cfg is 1, and one prompt schedule may serve a clip
    and its extensions.
    """
    from ...salt.pipeline.effect import changes_past_end

    notes = [UNKNOWN] if known_spec(inputs.model) is None else []
    notes += size_notes(inputs.model, clip.size)
    notes += first_block_notes(inputs.nfe, clip.memory is not None, inputs.video is not None)
    if inputs.negative is not None and not guides(inputs):
        notes.append("negative has no effect at cfg 1")
    if inputs.video is None and inputs.strength != DEFAULT_STRENGTH:
        notes.append("strength has no effect without a video")
    if clip.memory is not None and has_start_picture(inputs.model):
        notes.append(f"the start picture of {NODE} has no effect on a clip that goes on from a memory")
    shift = patched_shift(inputs.model)
    if shift is not None and inputs.shift and inputs.shift != shift:
        node = patch_name(patched_sampling(inputs.model))
        notes.append(f"the shift {shift:g} of {node} has no effect: the shift widget says {inputs.shift:g}")
    if late := changes_past_end([p.frame for p in prompts], end, spec.frames_per_block):
        seconds = FRAMES_PER_LATENT / spec.fps
        times = ", ".join(f"{frame * seconds:.4g} s" for frame in late)
        last = (end - spec.frames_per_block) * seconds
        notes.append(f"prompts at {times} have no effect: the clip's last block begins at {last:.4g} s")
    return notes


def first_block_notes(nfe: str, goes_on: bool, has_video: bool) -> list[str]:
    """What the report says where a clip has no first block of more steps, though the widget asks for it."""
    if THEN not in nfe or not (goes_on or has_video):
        return []
    why = "the clip goes on from a memory" if goes_on else "blocks start from a video"
    return [f"nfe {nfe}: all blocks took {nfe.split(THEN)[1]}, because {why}"]


def check_connections(inputs: RolloutInputs, memory: ClipMemory | None, policy: MemoryPolicy | None) -> None:
    """Raise InputError for sockets that need or exclude each other."""
    names = ("positive", "prompts", "negative", "vae", "video")
    connected = {name for name in names if getattr(inputs, name) is not None} | ({"memory"} if memory else set())
    check_rollout(connected, inputs.cfg)
    if memory is not None:
        check_memory(memory, policy, inputs.cfg, guides(inputs))


def check_memory(memory: ClipMemory, policy: MemoryPolicy | None, cfg: float, guided: bool) -> None:
    """Raise InputError for a memory that cannot be gone on from with this guidance, or with this policy."""
    if guided and memory.negative is None:
        raise InputError("cfg", "needs a memory that was written with guidance, and this one was not", cfg)
    if policy is not None and policy != memory.memory.policy:
        raise InputError("policy", f"{policy} does not fit the memory, whose own is {memory.memory.policy}")


def prompt_changes(inputs: RolloutInputs, spec: StudentSpec) -> list[PromptChange[Conditioning]]:
    """The prompts by latent frame. Raises InputError where there is none."""
    from ...salt.pipeline.inputs import change_frame

    if inputs.prompts is not None:
        frames = [change_frame(p.seconds, fps=spec.fps) if p.seconds else 0 for p in inputs.prompts]
        pairs = zip(frames, inputs.prompts, strict=True)
        return [PromptChange(f, p.conditioning, p.switch, p.keep_sink, p.first_block) for f, p in pairs]
    if inputs.positive is not None:
        return [PromptChange(0, inputs.positive)]
    raise no_prompt()


def video_samples(model: ModelPatcher, latent: Latent) -> Tensor:
    """A LATENT's samples [B, C, F, H, W] for a MODEL. Raises InputError for an image latent or a noise mask."""
    samples = latent["samples"]
    channels = latent_channels(model)
    if samples.ndim != 5 or samples.shape[1] != channels:
        raise InputError("latents", f"found shape {list(samples.shape)}, expected a Wan video [B, {channels}, F, H, W]")
    if latent.get("noise_mask") is not None:
        raise InputError("latents", "must not have a noise mask: a rollout generates whole blocks")
    check_latent_size("latents", samples, pixels_per_latent(model))
    return samples


def history_latents(model: ModelPatcher, memory: ClipMemory, latents: Latent) -> Tensor:
    """Latents [B, C, F, H, W] up to where the memory stands, which after Salt Rewind Memory is before the clip's end.

    Raises InputError where they are of another batch or size than the memory.
    """
    per_latent = pixels_per_latent(model)
    history, g = video_samples(model, latents), memory.memory.geometry
    height, width = history.shape[3:]
    found = f"a batch of {history.shape[0]} at {size_text(height, width, per_latent)} pixels"
    expected = f"a batch of {g.batch} at {size_text(PATCH * g.height, PATCH * g.width, per_latent)} pixels"
    if found != expected:
        raise InputError("latents", f"found {found}, expected the memory's, {expected}")
    return history[:, :, : memory.memory.next_frame]


def clip_of_memory(memory: ClipMemory, history: Tensor | None) -> ClipStart:
    """A clip to continue; size and batch are the memory's."""
    g = memory.memory.geometry
    return ClipStart((PATCH * g.height, PATCH * g.width), g.batch, None, memory, history)


def clip_of_inputs(
    model: ModelPatcher,
    vae: VAE | None,
    size: tuple[int, int],
    batch: int,
    memory: ClipMemory | None,
    start_image: Tensor | None,
    latents: Latent | None,
    still: int = 1,
) -> ClipStart:
    """What Salt Rollout starts with. size: width and height in pixels, 0 the MODEL's own. still: of
    `encode_start_image`.

    Raises InputError for sockets that exclude each other.
    """
    given = {"start_image": start_image, "latents": latents, "memory": memory}
    check_start({name for name, value in given.items() if value is not None})
    if has_start_picture(model) and memory is None and (start_image is not None or latents is not None):
        other = "start_image" if start_image is not None else "latents"
        raise InputError(other, "cannot be connected where ARVideoI2V has given the MODEL a start picture")
    if memory is not None:
        return clip_of_memory(memory, None if latents is None else history_latents(model, memory, latents))
    if latents is not None:
        start = video_samples(model, latents)
        return ClipStart((start.shape[3], start.shape[4]), start.shape[0], start)
    size = chosen_size(model, *size)
    latent = latent_size(*size, pixels_per_latent(model))
    start = start_picture(model, model.model_options, batch, latent)
    if start_image is not None:
        start = encode_start_image(vae, start_image, size, batch, latent_channels(model), still)
    return ClipStart(latent, batch, start)
