"""From the arguments of a call to what a rollout takes: embeddings, sizes, noise, memory, settings. Runs no steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..block_plan import RolloutSettings, block_lengths, count_model_calls
from ..conditioning import Conditioning, PromptChange, PromptSchedule, Switch
from ..errors import InputError
from ..io.pixel_sizes import check_multiple
from ..memory import KVMemory
from ..memory.far import memory_class
from ..models.fingerprint import fingerprint
from ..models.streaming_vae import encode_video
from ..noise import GivenNoise, NoiseSource, SeededNoise
from ..video_in.motion import DEFAULT_NOISE_SCALE, MotionNoise, PixelMotion
from ..video_in.strength import DEFAULT_STRENGTH, Strength
from ..video_in.video_latents import VideoLatents
from .anyflow import check_policy, check_switches
from .clip_limits import check_clip_fits
from .components import PipelineComponents
from .effect import check_effects
from .given_latents import check_axes, check_size
from .inputs import Length, PipelineInputs, change_frame, plan_length, wanted_frames
from .prompts import encode_prompts
from .source_video import OpenVideo, clip_frames, open_video
from .start_image import held_pixels, image_channels, image_embeddings, repeat_rows, start_pixels

log = logging.getLogger(__name__)


@dataclass
class PreparedRun:
    """Arguments of a rollout. conditioning is a schedule of prompts; memory is None for bidirectional models.

    start: latent frame of the first new block; begins: whether that takes the schedule's `first_steps`.
    negative_memory: filled in when a guided run begins, where the caller
    gave none.
    """

    length: Length
    settings: RolloutSettings
    noise: NoiseSource
    conditioning: PromptSchedule[Conditioning]
    negative: Conditioning | None
    memory: KVMemory | None
    negative_memory: KVMemory | None
    initial_latents: Tensor | None
    history_latents: Tensor | None
    video: Strength | MotionNoise | None = None
    start: int = 0
    begins: bool = False
    first_frame: Tensor | None = None

    @property
    def blocks(self) -> int:
        return 1 if self.memory is None else len(block_lengths(self.start, self.length.frames, self.settings))

    @property
    def reencodes(self) -> bool:
        """Whether the memory needs decoded frames, encoded again."""
        return self.memory is not None and self.memory.policy.reencodes

    @property
    def decodes_history(self) -> bool:
        """Whether the rollout has the latest blocks of the history decoded, one by one, before it begins."""
        return self.reencodes and self.memory is not None and self.memory.needs_history

    @property
    def denoising_steps(self) -> int:
        """Denoising steps of all blocks: how often `callback_on_step_end` is called."""
        return 0 if self.copies else self.settings.denoising_steps(self.blocks, self.begins)

    @property
    def copies(self) -> bool:
        """Whether a source video's latents are the clip: at a strength at which no step runs."""
        return self.video is not None and self.video.settings(self.settings) is None

    @property
    def model_calls(self) -> int:
        """Model calls as a progress bar counts them: denoising steps and context passes."""
        if self.memory is None:
            return self.denoising_steps
        initial_frames = 0 if self.initial_latents is None else self.initial_latents.shape[2]
        calls = count_model_calls(self.blocks, self.settings, self.memory.policy, initial_frames, begins=self.begins)
        return calls - self.copies * self.settings.denoising_steps(self.blocks, self.begins)


@torch.no_grad()
def prepare(components: PipelineComponents, inputs: PipelineInputs) -> PreparedRun:
    """Raises InputError for what does not fit the model, the memory or another argument; ValueError of the parts."""
    batch = inputs.prompt_count() * inputs.num_videos_per_prompt
    config, spec = components.transformer.config, components.spec
    _check_support(components, inputs)
    size = _pixel_size(components, inputs)
    latent_size = (size[0] // components.spatial_scale, size[1] // components.spatial_scale)
    if inputs.history_latents is not None:
        check_size(components, "history_latents", inputs.history_latents, (batch, config.out_channels, 0, *latent_size))
    source = None if inputs.video is None else open_video(inputs.video, spec.fps)
    if source is not None:
        inputs = _as_long_as(source, inputs, components)
    check_clip_fits(components, inputs, size)
    pixels = None
    if inputs.image is not None:
        longest = wanted_frames(inputs, spec.fps) + components.temporal_scale * max(spec.frames_per_block, 1)
        pixels = start_pixels(inputs.image, size, batch, inputs.num_videos_per_prompt, longest, spec.fps)
        pixels = held_pixels(pixels, inputs.policy(spec), components.temporal_scale)
    initial = _initial_latents(components, inputs, pixels, (batch, config.out_channels, *latent_size))
    past = 0 if inputs.memory is None else inputs.memory.next_frame
    first_frame = None
    if spec.gives_first_frame and initial is not None and initial.shape[2] == 1 and past == 0:
        first_frame, initial = initial, None
    start_frames = 0 if initial is None else initial.shape[2]
    spec = replace(spec, frames_per_block=spec.frames_per_block or 1)
    length = plan_length(
        inputs, spec, start_frames=start_frames, extends=past > 0, seamless=inputs.history_latents is not None,
        temporal_scale=components.temporal_scale,
    )  # fmt: skip
    if length.note:
        log.info(length.note)
    settings = RolloutSettings(
        schedule=inputs.schedule(spec),
        stepping=inputs.stepping or ("ode" if components.bidirectional else spec.stepping),
        frames_per_block=spec.frames_per_block,
        independent_first_frame=spec.independent_first_frame,
        guidance=inputs.guidance_scale,
        fuse=inputs.fuse or components.acceleration.fuse,
    )
    video = None
    if source is not None:
        video = _source(components, inputs, source, size, batch)
        settings = video.settings(settings) or settings
    memory = None
    if not components.bidirectional:
        memory = _memory(components, inputs, (batch, *latent_size), start_frames + length.frames)
        check_switches(memory.policy, [change[2] for change in inputs.prompt_schedule if len(change) > 2])
    conditioning, negative = _conditioning(components, inputs)
    if components.image_to_video and pixels is not None:
        conditioning, negative = _with_image(components, conditioning, negative, pixels, past + length.frames)
    noise_shape = (batch, config.out_channels, length.frames, *latent_size)
    history = inputs.history_latents
    scales = (components.temporal_scale, spec.fps)
    check_effects(inputs, settings, conditioning, memory, start_frames + length.frames, *scales)
    return PreparedRun(
        length=length,
        settings=settings,
        noise=_noise(components, inputs, noise_shape, past + start_frames),
        conditioning=conditioning,
        negative=negative,
        memory=memory,
        negative_memory=inputs.negative_memory,
        initial_latents=initial,
        history_latents=None if history is None else history.to(components.device, torch.float32),
        video=video,
        start=past + start_frames,
        begins=memory is not None and past == 0 and source is None,
        first_frame=first_frame,
    )


def _as_long_as(source: OpenVideo, inputs: PipelineInputs, components: PipelineComponents) -> PipelineInputs:
    """The inputs with a length that the source video fills."""
    spec, field = components.spec, "seconds" if inputs.num_frames is None else "num_frames"
    wanted = None if inputs.num_frames is None and inputs.seconds is None else wanted_frames(inputs, spec.fps)
    block, first = max(spec.frames_per_block, 1), spec.first_block
    frames = clip_frames(source, wanted, field, block, first, components.temporal_scale)
    if wanted is None and frames != source.frames:
        log.info("video: %d of %d frames, the whole blocks that it fills", frames, source.frames)
    return inputs if inputs.num_frames is not None else replace(inputs, num_frames=frames, seconds=None)


def _source(
    components: PipelineComponents, inputs: PipelineInputs, source: OpenVideo, size: tuple[int, int], batch: int
) -> Strength | MotionNoise:
    """How blocks start from the source video, which is encoded while they are made."""

    def widen(latents: Tensor) -> Tensor:
        return repeat_rows(latents, "video", batch, inputs.num_videos_per_prompt).to(components.device)

    if source.rows not in (1, batch, batch // inputs.num_videos_per_prompt):
        raise InputError("video", f"found a batch of {source.rows}, expected 1 or {batch}")
    by_motion = components.spec.rule == "streamdiffusion2"
    default = DEFAULT_NOISE_SCALE if by_motion else DEFAULT_STRENGTH
    strength = default if inputs.strength is None else inputs.strength
    pixels = PixelMotion(source.pixels(size), components.temporal_scale)
    latents = VideoLatents(components.new_encoder(), pixels, widen)
    return MotionNoise(latents, pixels, strength) if by_motion else Strength(latents, strength)


def _check_support(components: PipelineComponents, inputs: PipelineInputs) -> None:
    """Raise InputError for what this kind of model does not take, and a memory that another rollout writes."""
    check_axes(inputs)
    for name in ("memory", "negative_memory"):
        if (memory := getattr(inputs, name)) is not None:
            memory.check_free(name)
    if components.bidirectional:
        for name in ("memory", "memory_policy", "history_latents", "prompt_schedule", "initial_latents", "video"):
            if (given := getattr(inputs, name)) is not None and (not isinstance(given, tuple) or given):
                raise InputError(name, "is not supported by bidirectional models")
        if inputs.image is not None and not components.image_to_video:
            raise InputError("image", "is not supported by bidirectional text-to-video models")
    if components.image_to_video:
        if inputs.video is not None:
            raise InputError("video", "is not supported by image-to-video models")
        if inputs.image is None:
            raise InputError("image", "is required by image-to-video models")
        if inputs.initial_latents is not None:
            raise InputError("initial_latents", "is not supported by image-to-video models; use `image`")
    elif inputs.image is not None and inputs.memory is not None:
        raise InputError("image", "cannot be combined with `memory`")


def _pixel_size(components: PipelineComponents, inputs: PipelineInputs) -> tuple[int, int]:
    """Pixels (H, W): of the arguments, or of the latents or the memory that the clip begins with, or the default."""
    scale, (_, p_h, p_w) = components.spatial_scale, components.transformer.config.patch_size
    default = components.default_size
    if inputs.initial_latents is not None:
        default = (inputs.initial_latents.shape[3] * scale, inputs.initial_latents.shape[4] * scale)
    elif inputs.memory is not None:
        g = inputs.memory.geometry
        default = (g.height * p_h * scale, g.width * p_w * scale)
    height, width = inputs.height or default[0], inputs.width or default[1]
    for name, value, unit, held in (
        ("height", height, scale * p_h, default[0]),
        ("width", width, scale * p_w, default[1]),
    ):
        if inputs.memory is not None and value != held:
            raise InputError(name, f"found {value} pixels, expected those of the clip in `memory`, {held}")
        check_multiple(name, value, unit)
    return height, width


def _initial_latents(
    components: PipelineComponents, inputs: PipelineInputs, pixels: Tensor | None, shape: tuple[int, ...]
) -> Tensor | None:
    """Clean latents that go through context passes first. shape: (batch, channels, height, width) of the run."""
    initial = inputs.initial_latents
    if pixels is not None and not components.image_to_video:
        initial = encode_video(components.vae, pixels)
    if initial is None:
        return None
    check_size(components, "initial_latents", initial, (*shape[:2], 0, *shape[2:]))
    return initial.to(components.device, torch.float32)


def _noise(components: PipelineComponents, inputs: PipelineInputs, shape: tuple[int, ...], offset: int) -> NoiseSource:
    """shape: [B, C, F, H, W] of the new latent frames, which begin at latent frame `offset`."""
    batch, channels, _, height, width = shape
    seeded = SeededNoise(inputs.clip_seeds(batch), batch, channels, height, width, device=components.device)
    if inputs.latents is None:
        return seeded
    check_size(components, "latents", inputs.latents, shape)
    return GivenNoise(inputs.latents.to(components.device, torch.float32), offset, seeded)


def _memory(
    components: PipelineComponents, inputs: PipelineInputs, shape: tuple[int, int, int], frames: int
) -> KVMemory:
    """The memory to extend, checked; or an empty one for `frames` latent frames. shape: (batch, height, width)."""
    transformer = components.transformer
    geometry, identity = transformer.memory_geometry(*shape), fingerprint(transformer)
    for name in ("memory", "negative_memory"):
        memory: KVMemory | None = getattr(inputs, name)
        if memory is not None:
            memory.check_fits(geometry, identity, name)
    if inputs.memory is None:
        policy = components.acceleration.policy(inputs.policy(components.spec))
        check_policy(policy, transformer)
        memory = memory_class(policy)(policy, geometry, transformer.dtype, components.device, frames, identity)
        if components.acceleration.compiled:
            components.buffer_pool.lend_buffers(memory)
        return memory
    if inputs.guided:
        negative, past = inputs.negative_memory, inputs.memory.next_frame
        if negative is None:
            raise InputError("negative_memory", "is needed to extend `memory` with guidance")
        if negative.next_frame != past:
            held, other = (
                f"{frames} latent frames ({frames * components.temporal_scale / components.spec.fps:g} s)"
                for frames in (negative.next_frame, past)
            )
            raise InputError("negative_memory", f"holds a clip of {held}, and `memory` one of {other}")
    return inputs.memory


def _conditioning(
    components: PipelineComponents, inputs: PipelineInputs
) -> tuple[PromptSchedule[Conditioning], Conditioning | None]:
    transformer, prefix = components.transformer, components.spec.shot_prefix
    later: list[tuple[float, str, Switch]] = [
        (change[0], change[1], change[2] if len(change) > 2 else "keep") for change in inputs.prompt_schedule
    ]
    texts = [text.removeprefix(prefix) if switch == "shot" else text for _, text, switch in later]
    prefixed = {i: prefix + texts[i] for i, (_, _, switch) in enumerate(later) if switch == "shot" and prefix}
    embeddings = encode_prompts(
        inputs, components.text_encoder, components.device, transformer.dtype, [*texts, *prefixed.values()]
    )
    width, text_dim = embeddings.prompt.shape[2], transformer.config.text_dim
    if width != text_dim:
        field = "prompt" if inputs.prompt_embeds is None else "prompt_embeds"
        raise InputError(field, f"was encoded in embeddings of width {width}, and the model takes {text_dim}")
    batch = embeddings.prompt.shape[0]
    changes = [PromptChange(0, Conditioning(embeddings.prompt))]
    conditionings = [Conditioning(text_LD.expand(batch, -1, -1)) for text_LD in embeddings.changes]
    first_blocks = dict(zip(prefixed, conditionings[len(later) :], strict=True))
    for i, (seconds, _, switch) in enumerate(later):
        frame = change_frame(seconds, components.temporal_scale, components.spec.fps)
        given = inputs.prompt_schedule[i]
        keep_sink = given[3] if len(given) > 3 else False
        changes.append(PromptChange(frame, conditionings[i], switch, keep_sink, first_blocks.get(i)))
    if len({c.frame for c in changes}) != len(changes):
        times = ", ".join(f"{seconds:g} s" for seconds, _, _ in later)
        apart = components.temporal_scale / components.spec.fps
        raise InputError("prompt_schedule", f"found changes at {times}, expected them more than {apart:g} s apart")
    negative = None if embeddings.negative is None else Conditioning(embeddings.negative)
    return PromptSchedule(changes), negative


def _with_image(
    components: PipelineComponents,
    conditioning: PromptSchedule[Conditioning],
    negative: Conditioning | None,
    pixels: Tensor,
    frames: int,
) -> tuple[PromptSchedule[Conditioning], Conditioning | None]:
    """The conditionings with an image-to-video model's channels and CLIP embeddings, for `frames` latent frames."""
    image = None
    if components.image_encoder is not None and components.image_processor is not None:
        image = image_embeddings(components.image_encoder, components.image_processor, pixels)
        image = image.to(components.device, components.transformer.dtype)
    channels = image_channels(components.vae, pixels, frames).to(components.device, components.transformer.dtype)

    def add(text: Conditioning) -> Conditioning:
        return replace(text, image=image, channels=channels)

    changes = [replace(change, conditioning=add(change.conditioning)) for change in conditioning.changes]
    return PromptSchedule(changes), None if negative is None else add(negative)
