"""The memory plan of a pipeline as it stands, and the one line that an out-of-memory error ends in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..acceleration.free_memory import total_bytes
from ..errors import DeviceMemoryError
from ..models.text_encoder import TextEncoder, UMT5TextEncoder
from ..models.word_embedder import WordEmbedder
from ..planning.choices import cheapest
from ..planning.models import PlannedModel, model_of_config
from ..planning.peaks import MemoryPlan, memory_plan
from ..planning.report import best_line, clip_text, gb
from ..planning.settings import Decoder, PlanSettings, TextPlacement, Weights
from .components import PipelineComponents
from .inputs import DEFAULT_SECONDS, PipelineInputs


def plan_of(components: PipelineComponents, inputs: PipelineInputs, decoder: Decoder) -> MemoryPlan:
    """The plan of a call. The clip's own start, prompts and callbacks are not looked at."""
    model = _model(components)
    size = (inputs.height or components.default_size[0], inputs.width or components.default_size[1])
    seconds = DEFAULT_SECONDS if inputs.seconds is None else inputs.seconds
    if inputs.num_frames is not None:
        seconds = inputs.num_frames / model.spec.fps
    preset = components.acceleration
    if decoder == "whole" and preset.tiles:
        decoder = "tiles"
    settings = PlanSettings(
        *size,
        seconds=seconds,
        policy=preset.policy(inputs.policy(components.spec)),
        clips=inputs.prompt_count() * inputs.num_videos_per_prompt,
        weights=_weights(components),
        text=_text_placement(components.text_encoder, components.device),
        decoder="none" if components.vae is None else decoder,
        vae="float32" if components.vae is not None and components.vae.dtype == torch.float32 else "bf16",
        guided=inputs.guided,
        fuse=inputs.fuse or preset.fuse,
        compiled=preset.compiled,
    )
    return memory_plan(model, settings)


def _model(components: PipelineComponents) -> PlannedModel:
    found = model_of_config("the pipeline's model", dict(components.transformer.config))
    width = 0 if components.vae is None else int(components.vae.config["base_dim"])
    umt5 = not isinstance(components.text_encoder, WordEmbedder)
    return replace(found, vae_width=width, umt5=umt5, spec=components.spec)


def _weights(components: PipelineComponents) -> Weights:
    preset = components.acceleration
    if preset.weights != "bf16":
        return preset.weights
    if preset.fp8:
        return "fp8"
    return "float32" if components.transformer.dtype == torch.float32 else "bf16"


def _text_placement(encoder: TextEncoder | None, device: torch.device) -> TextPlacement:
    if encoder is None:
        return "none"
    if not isinstance(encoder, UMT5TextEncoder):
        return "layers"  # cached embeddings of one, or none at all
    if encoder.model.device == device:
        return "device"
    return "cpu" if encoder.device is None else "layers"


@contextmanager
def memory_errors(components: PipelineComponents, inputs: PipelineInputs, decoder: Decoder) -> Iterator[None]:
    """Turn an out-of-memory error of a run into a DeviceMemoryError that says what would fit the device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        total = total_bytes(components.device)
        plan = plan_of(components, inputs, decoder)
        found = cheapest(plan.model, plan.settings, min(total, plan.peak))
        raise DeviceMemoryError(
            f"{components.device} of {gb(total)} is out of memory ({clip_text(plan)}; planned peak {gb(plan.peak)}). "
            f"{best_line(found)}"
        ) from error
