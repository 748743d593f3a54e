"""From a request to everything that a rollout takes: encoded prompts, sizes, noise, memory, settings. Runs no steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from ..conditioning import Conditioning, PromptChange, PromptSchedule, Switch
from ..memory import KVMemory, MemoryGeometry
from ..models.streaming_vae import encode_video
from ..models.transformer_salt import fingerprint
from ..noise import SeededNoise
from ..rollout import RolloutSettings
from .inputs import FPS, Length, PipelineInputs, change_frame, plan_length, prompt_list
from .start_image import image_channels, image_embeddings, start_pixels

if TYPE_CHECKING:
    from .pipeline import SaltPipeline


log = logging.getLogger(__name__)


@dataclass
class PreparedRun:
    """A request made ready. conditioning holds a schedule of prompts; memory is None for a bidirectional student."""

    length: Length
    settings: RolloutSettings
    noise: SeededNoise
    conditioning: PromptSchedule
    negative: Conditioning | None
    memory: KVMemory | None
    negative_memory: KVMemory | None
    initial_latents: Tensor | None
    history_latents: Tensor | None

    @property
    def calls(self) -> int:
        """Model calls to come, as a progress bar counts them: denoising steps and context passes."""
        nfe, per_block = self.settings.schedule.nfe, self.settings.frames_per_block
        if self.memory is None:
            return nfe
        blocks = math.ceil(self.length.frames / per_block)
        given = 0 if self.initial_latents is None else math.ceil(self.initial_latents.shape[2] / per_block)
        return given + blocks * nfe + (1 if self.settings.fuse else blocks)


@torch.no_grad()
def prepare(pipe: SaltPipeline, prompt: str | Sequence[str], request: PipelineInputs) -> PreparedRun:
    """Raises ValueError, naming the option, for what does not fit the student, the memory or each other."""
    prompts = prompt_list(prompt)
    spec, config, device, batch = pipe.spec, pipe.transformer.config, pipe.run_device, len(prompts)
    bidirectional = spec.frames_per_block == 0
    wants_image = config.in_channels > config.out_channels
    _check_kind(request, bidirectional, wants_image)
    size = _size(pipe, request)
    scale, temporal = pipe.spatial_scale, pipe.temporal_scale
    latent_size = (size[0] // scale, size[1] // scale)
    pixels = None if request.image is None else start_pixels(request.image, size, batch)
    initial = request.initial_latents
    if pixels is not None and not wants_image:
        initial = encode_video(pipe.vae, pixels)
    if initial is not None:
        expected = (batch, config.out_channels, *latent_size)
        if (found := (*initial.shape[:2], *initial.shape[3:])) != expected:
            raise ValueError(f"initial_latents: found (batch, channels, height, width) = {found}, expected {expected}")
        initial = initial.to(device, torch.float32)
    past = request.memory.next_frame if request.memory is not None else 0
    history = request.history_latents
    given = 0 if initial is None else initial.shape[2]
    planned = replace(spec, frames_per_block=spec.frames_per_block or 1)
    length = plan_length(
        request, planned, given=given, extends=past > 0, seamless=history is not None, temporal_scale=temporal
    )
    if length.note:
        log.info(length.note)
    stepping = request.stepping or ("ode" if bidirectional else "sde")
    settings = RolloutSettings(
        schedule=request.schedule(spec),
        stepping=cast(Literal["sde", "ode"], stepping),
        frames_per_block=planned.frames_per_block,
        independent_first_frame=spec.independent_first_frame,
        guidance=request.guidance_scale,
        fuse=request.fuse or pipe.speed.fuse,
    )
    memory = None
    if not bidirectional:
        geometry = pipe.transformer.memory_geometry(batch, *latent_size)
        memory = request.memory or KVMemory(
            pipe.speed.policy(request.policy(spec)),
            geometry,
            pipe.transformer.dtype,
            device,
            given + length.frames,
            fingerprint(pipe.transformer),
        )
        if pipe.speed.compiled and request.memory is None:
            pipe.stores.furnish(memory)
        _check_memory(pipe, request, geometry)
    conditioning, negative = _conditions(pipe, prompts, request)
    if wants_image and pixels is not None:
        image = None
        if pipe.image_encoder is not None:
            image = image_embeddings(pipe.image_encoder, pipe.image_processor, pixels)
        channels = image_channels(pipe.vae, pixels, past + length.frames)
        like = {"device": device, "dtype": pipe.transformer.dtype}
        add = {"image": None if image is None else image.to(**like), "channels": channels.to(**like)}
        changes = [replace(c, conditioning=replace(c.conditioning, **add)) for c in conditioning.changes]
        conditioning = PromptSchedule(changes)
        negative = None if negative is None else replace(negative, **add)
    return PreparedRun(
        length=length,
        settings=settings,
        noise=SeededNoise(request.seeds(), batch, config.out_channels, *latent_size, device=device),
        conditioning=conditioning,
        negative=negative,
        memory=memory,
        negative_memory=request.negative_memory,
        initial_latents=initial,
        history_latents=None if history is None else history.to(device, torch.float32),
    )


def _check_kind(request: PipelineInputs, bidirectional: bool, wants_image: bool) -> None:
    if bidirectional:
        for name in ("memory", "memory_policy", "history_latents", "prompt_schedule", "initial_latents"):
            if getattr(request, name) not in (None, ()):
                raise ValueError(f"{name}: found it with a bidirectional student, which has no blocks, expected none")
        if request.image is not None and not wants_image:
            raise ValueError("image: found one with a bidirectional text-to-video student, expected none")
    if wants_image and request.image is None:
        raise ValueError("image: found none, expected one (this is an image-to-video student)")
    if wants_image and request.initial_latents is not None:
        raise ValueError("initial_latents: found them with an image-to-video student, expected an image")
    if not wants_image and request.image is not None and request.memory is not None:
        raise ValueError("memory and image: found both, expected one of them")


def _size(pipe: SaltPipeline, request: PipelineInputs) -> tuple[int, int]:
    """Pixels (H, W): as asked, or those of the latents or the memory that the clip begins with, or the usual ones."""
    scale, (_, p_h, p_w) = pipe.spatial_scale, pipe.transformer.config.patch_size
    usual = pipe.default_size
    if request.initial_latents is not None:
        usual = (request.initial_latents.shape[3] * scale, request.initial_latents.shape[4] * scale)
    elif request.memory is not None:
        g = request.memory.geometry
        usual = (g.height * p_h * scale, g.width * p_w * scale)
    height, width = request.height or usual[0], request.width or usual[1]
    for name, value, unit in (("height", height, scale * p_h), ("width", width, scale * p_w)):
        if value < unit or value % unit:
            raise ValueError(f"{name}: found {value} pixels, expected a multiple of {unit}")
    return height, width


def _check_memory(pipe: SaltPipeline, request: PipelineInputs, geometry: MemoryGeometry) -> None:
    for name in ("memory", "negative_memory"):
        memory: KVMemory | None = getattr(request, name)
        if memory is None:
            continue
        for field in fields(MemoryGeometry):
            found, expected = getattr(memory.geometry, field.name), getattr(geometry, field.name)
            if found != expected:
                raise ValueError(f"{name}: {field.name} differs: found {found}, expected {expected}")
        if memory.fingerprint != (expected := fingerprint(pipe.transformer)):
            raise ValueError(
                f"{name}: fingerprint differs: found {memory.fingerprint or 'none'}, expected {expected} "
                "(the memory was written by another model)"
            )
    if request.memory is not None and request.guidance_scale != 1.0:
        found = None if request.negative_memory is None else request.negative_memory.next_frame
        if found != request.memory.next_frame:
            what = "none" if found is None else f"one of {found} frames"
            raise ValueError(
                f"negative_memory: found {what}, expected the one that was written beside a memory of "
                f"{request.memory.next_frame} frames (guidance is on)"
            )


def _conditions(
    pipe: SaltPipeline, prompts: list[str], request: PipelineInputs
) -> tuple[PromptSchedule, Conditioning | None]:
    """All texts are encoded at once, so that an offloaded encoder comes and goes once."""
    batch, text_dim = len(prompts), pipe.transformer.config.text_dim
    later = [(change[0], change[1], change[2] if len(change) > 2 else "keep") for change in request.prompt_schedule]
    guided = request.guidance_scale != 1.0
    negatives = prompt_list(request.negative_prompt) if guided else []
    if guided and len(negatives) not in (1, batch):
        raise ValueError(f"negative_prompt: found {len(negatives)}, expected 1 or {batch}")
    texts_BLD = pipe.text.encode([*prompts, *(text for _, text, _ in later), *negatives])
    if texts_BLD.shape[2] != text_dim:
        raise ValueError(f"text encoder: found embeddings of width {texts_BLD.shape[2]}, expected {text_dim}")
    texts_BLD = texts_BLD.to(pipe.run_device, pipe.transformer.dtype)
    own, changed, negative = texts_BLD.split([batch, len(later), len(negatives)])
    changes = [PromptChange(0, Conditioning(own))]
    for text_LD, (seconds, _, switch) in zip(changed, later, strict=True):
        frame = change_frame(seconds, pipe.temporal_scale)
        changes.append(PromptChange(frame, Conditioning(text_LD.expand(batch, -1, -1)), cast(Switch, switch)))
    if len({c.frame for c in changes}) != len(changes):
        times = ", ".join(f"{seconds:g} s" for seconds, _, _ in later)
        apart = pipe.temporal_scale / FPS
        raise ValueError(f"prompt_schedule: found changes at {times}, expected them more than {apart:g} s apart")
    return PromptSchedule(changes), Conditioning(negative.expand(batch, -1, -1)) if guided else None
