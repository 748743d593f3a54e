"""The engine's semigroup-defect measurement on a MODEL, and the plot of its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.memory import MemoryPolicy, estimate_bytes
from ...salt.model_input import FlowModel, ModelInput
from ...salt.noise import SeededNoise
from ...salt.rollout import RolloutSettings
from ...salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule
from ...salt.semigroup_defect import (
    OPERATORS,
    Defects,
    Operator,
    Triple,
    check_student,
    semigroup_defect,
    steps_for,
)
from ...salt.spec import StudentSpec
from ..io_types import Conditioning
from .comfy_model import Conds, compute_dtype, flow_to, latent_channels, memory_geometry, new_memory
from .core_guidance import guided_flow
from .model_sampling import scaled_noise
from .sampler import SamplerInputs, SamplerOutput, sample
from .start_picture import NODE, has_start_picture
from .student_spec import autoregressive_spec, spec_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

COLOURS: dict[Operator, tuple[int, int, int]] = {"euler": (70, 130, 220), "sampler": (235, 150, 50)}


def student_spec(model: ModelPatcher, frames_per_block: int) -> StudentSpec:
    """Settings of a student of either kind; `frames_per_block` 0: its own. Raises InputError for a plain Wan or a
    start picture."""
    if has_start_picture(model):
        raise InputError("model", f"has a start picture, which has no effect here; connect the MODEL before {NODE}")
    spec = spec_of(model)
    if spec is None or spec.frames_per_block:
        return autoregressive_spec(model, frames_per_block)
    if frames_per_block:
        raise InputError("frames_per_block", "is not supported by bidirectional students", frames_per_block)
    return spec


def whole_clip_model(inputs: SamplerInputs) -> FlowModel[Conds]:
    """The MODEL on a whole clip at once, without a memory: flow [B, C, F, H, W] at timesteps [B]."""
    import comfy.model_management

    def flow(call: ModelInput[Conds], /) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        sigma = call.timestep.to(torch.float32) / NUM_TRAIN_TIMESTEPS
        x0 = inputs.guider(call.x, sigma, model_options=inputs.model.model_options, seed=inputs.seed)
        return flow_to(x0, call.x, sigma)

    return flow


def measure_defects(
    model: ModelPatcher,
    positive: Conditioning,
    triples: list[Triple],
    spec: StudentSpec,
    policy: MemoryPolicy,
    frames: int,
    size: tuple[int, int],
    seed: int,
) -> Defects:
    """Defects of a clip of `frames` latent frames and latent (height, width), by triple and operator."""
    schedule = Schedule(steps_for(triples), spec.shift, spec.rule)
    settings = RolloutSettings(schedule, spec.stepping, spec.frames_per_block or 1, spec.independent_first_frame)

    check_student(schedule, policy if spec.frames_per_block else None)

    def run(inputs: SamplerInputs) -> SamplerOutput[Defects]:
        noise = scaled_noise(SeededNoise(seed, 1, latent_channels(model), *size, device=inputs.noise.device), model)
        if not spec.frames_per_block:
            flow = whole_clip_model(inputs)
        else:
            flow = inputs.model if inputs.guide is None else guided_flow(inputs.model, inputs.guide)
        memory = new_memory(inputs.patcher, policy, 1, *size, frames) if spec.frames_per_block else None
        conds = inputs.conds["positive"]
        defects = semigroup_defect(flow, conds, memory, noise, frames, settings, triples=triples)
        return SamplerOutput(inputs.noise, defects)  # core expects latents from a sampler; these are not used

    reserve = None
    if spec.frames_per_block:
        size_on_device = estimate_bytes(policy, memory_geometry(model, 1, *size), compute_dtype(model), frames)
        reserve = (size_on_device if policy.residence == "device" else 0, spec.frames_per_block)
    latents, sigmas = torch.zeros(1, latent_channels(model), frames, *size), torch.tensor([*schedule.sigmas, 0.0])
    return sample(model, {"positive": positive}, latents, sigmas, run, seed=seed, reserve=reserve).extra


def plot(defects: Defects, title: str) -> Tensor:
    """Bars per triple and operator as an IMAGE [1, H, W, 3] in [0, 1]. Drawn with PIL, which ComfyUI has."""
    import numpy as np
    from PIL import Image, ImageDraw

    width, height, foot = 640, 320, 44
    image = Image.new("RGB", (width, height), (24, 24, 27))
    draw = ImageDraw.Draw(image)
    draw.text((10, 6), f"{title}   (euler blue, sampler orange; each scaled to its own largest)", fill=(225, 225, 225))
    triples = list(dict.fromkeys(triple for triple, _ in defects))
    largest = {operator: max(defects[triple, operator] for triple in triples) or 1.0 for operator in OPERATORS}
    step = (width - 20) / len(triples)
    for i, triple in enumerate(triples):
        for j, operator in enumerate(OPERATORS):
            value = defects[triple, operator]
            tall = (height - foot - 50) * value / largest[operator]
            left = 10 + i * step + step * (0.12 + 0.4 * j)
            draw.rectangle((left, height - foot - tall, left + step * 0.34, height - foot), fill=COLOURS[operator])
            draw.text((left, height - foot - tall - 14), f"{value:.4f}", fill=(225, 225, 225))
        draw.text((10 + i * step + 8, height - foot + 8), ",".join(f"{s:g}" for s in triple), fill=(225, 225, 225))
    return torch.from_numpy(np.asarray(image).copy()).float()[None] / 255
