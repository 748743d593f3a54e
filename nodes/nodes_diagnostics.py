"""Host 1: *Semigroup Defect* of a student: how far one long step lands from two shorter ones, on its own path."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..salt.conditioning import PromptSchedule
from ..salt.memory import MemoryPolicy, estimate_bytes
from ..salt.model_input import FlowModel, ModelInput
from ..salt.noise import SeededNoise
from ..salt.rollout import RolloutSettings, rollout
from ..salt.sampling import sample_bidirectional
from ..salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule
from ..salt.semigroup_defect import DefectMeter, Defects, defect_table, mean_defects, parse_triples, steps_for
from ..salt.spec import StudentSpec
from .adapter.comfy_model import Conds, compute_dtype, memory_geometry, new_memory
from .adapter.sampler import Sampling, sample
from .adapter.student_spec import autoregressive, spec_of
from .io_types import Policy, schema

TRIPLES = "1000, 875, 750; 750, 625, 500; 500, 375, 250; 250, 125, 0"


def student_of(model: Any, frames_per_block: int) -> StudentSpec:
    """Settings of a student of either kind; `frames_per_block` 0: its own. Raises ValueError for a plain Wan."""
    spec = spec_of(model)
    if spec is None or spec.frames_per_block:
        return autoregressive(model, frames_per_block)
    if frames_per_block:
        raise ValueError(f"frames_per_block: found {frames_per_block} for a bidirectional student, expected 0")
    return spec


def whole_clip(s: Sampling) -> FlowModel[Conds]:
    """The MODEL on a whole clip at once, without a memory: flow [B, C, F, H, W] at timesteps [B]."""
    import comfy.model_management
    import comfy.samplers

    def flow(inputs: ModelInput[Conds], /) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        x, sigma = inputs.x, inputs.timestep.to(torch.float32) / NUM_TRAIN_TIMESTEPS
        (x0,) = comfy.samplers.calc_cond_batch(s.model.base, [inputs.conditioning], x, sigma, s.model.model_options)
        return (x - x0) / sigma.view(-1, 1, 1, 1, 1)

    return flow


def plot(defects: Defects, title: str) -> Tensor:
    """Bars per triple and operator as an IMAGE [1, H, W, 3] in [0, 1]. Drawn with PIL, which ComfyUI has."""
    import numpy as np
    from PIL import Image, ImageDraw

    width, height, foot, colours = 640, 320, 44, {"euler": (70, 130, 220), "sampler": (235, 150, 50)}
    image = Image.new("RGB", (width, height), (24, 24, 27))
    draw = ImageDraw.Draw(image)
    draw.text((10, 6), f"{title}   (euler blue, sampler orange; each scaled to its own largest)", fill=(225, 225, 225))
    triples = list(dict.fromkeys(t for t, _ in defects))
    most = {o: max(v for (_, p), v in defects.items() if p == o) or 1.0 for _, o in defects}
    step = (width - 20) / len(triples)
    for i, triple in enumerate(triples):
        for j, (operator, colour) in enumerate(colours.items()):
            value = defects[triple, operator]  # pyright: ignore[reportArgumentType] - keys are operators
            tall = (height - foot - 50) * value / most[operator]  # pyright: ignore[reportArgumentType]
            left = 10 + i * step + step * (0.12 + 0.4 * j)
            draw.rectangle((left, height - foot - tall, left + step * 0.34, height - foot), fill=colour)
            draw.text((left, height - foot - tall - 14), f"{value:.4f}", fill=(225, 225, 225))
        draw.text((10 + i * step + 8, height - foot + 8), ",".join(f"{s:g}" for s in triple), fill=(225, 225, 225))
    return torch.from_numpy(np.asarray(image).copy()).float()[None] / 255


class SaltSemigroupDefect(io.ComfyNode):
    """The semigroup defect as number and plot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltSemigroupDefect",
            display_name="Semigroup Defect",
            category="Salt/diagnostics",
            description="How far one long step of a student lands from two shorter ones, measured on a clip of its "
            "own, "
            "block by block against its own memory; squared and relative to the step. Salt trains it down: compare two "
            "students at the same seed.",
            search_aliases=["consistency", "self-consistency", "diagnose student", "semigroup"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A student, autoregressive or bidirectional."),
                io.Conditioning.Input("positive", tooltip="A prompt."),
                io.String.Input(
                    "triples",
                    default=TRIPLES,
                    tooltip="Steps t_s, t_m, t_e before the shift, parted by semicolons; t_s of the 4- or 8-step list.",
                ),
                io.Float.Input("seconds", default=2.0, min=0.5, max=60.0, step=0.25, tooltip="Length of the clip."),
                io.Int.Input("width", default=832, min=16, max=4096, step=16, tooltip="Pixels."),
                io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip="Pixels."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="The same seed for every student."),
                io.Int.Input("frames_per_block", default=0, min=0, max=21, tooltip="0: the MODEL's own."),
                Policy.Input("policy", optional=True, tooltip="What the memory keeps; without it, the MODEL's own."),
            ],
            outputs=[
                io.Float.Output(display_name="defect", tooltip="Mean over the triples, Euler operator."),
                io.String.Output(display_name="table", tooltip="All of them, also with the real sampler (markdown)."),
                io.Image.Output(display_name="plot", tooltip="The same as bars."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, triples: str, seconds: float, width: int, height: int, seed: int,
        frames_per_block: int, policy: MemoryPolicy | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        from comfy_api.latest import ui

        from ..salt.pipeline.inputs import PipelineInputs, plan_length

        spec = student_of(model, frames_per_block)
        chosen = parse_triples(triples)
        schedule = Schedule(steps_for(chosen), spec.shift)
        settings = RolloutSettings(schedule, "sde", spec.frames_per_block or 1, spec.independent_first_frame)
        frames, size = plan_length(PipelineInputs(seconds=seconds), spec).frames, (height // 8, width // 8)
        kept = policy or spec.policy
        meters: list[DefectMeter] = []

        def work(s: Sampling) -> Tensor:
            noise = SeededNoise(seed, 1, 16, *size, device=s.noise.device)
            call = s.model if spec.frames_per_block else whole_clip(s)
            meter = DefectMeter(call, noise, schedule.steps, spec.shift, chosen)
            meters.append(meter)
            if spec.frames_per_block == 0:
                return sample_bidirectional(meter, s.conds["positive"], noise, frames, settings)
            memory = new_memory(s.patcher, kept, 1, *size, frames)
            prompts = PromptSchedule.of(s.conds["positive"])
            return torch.cat([b.latents for b in rollout(meter, prompts, memory, noise, frames, settings)], dim=2)

        reserve = None
        if spec.frames_per_block:
            room = estimate_bytes(kept, memory_geometry(model, 1, *size), compute_dtype(model), frames)
            reserve = (room if kept.residence == "device" else 0, spec.frames_per_block)
        sigmas = torch.tensor([*schedule.sigmas, 0.0])
        sample(
            model, {"positive": positive}, torch.zeros(1, 16, frames, *size), sigmas, work, seed=seed, reserve=reserve
        )  # fmt: skip
        found = mean_defects(meters)
        euler = [value for (_, operator), value in found.items() if operator == "euler"]
        mean, table = sum(euler) / len(euler), defect_table({"student": found})
        image = plot(found, f"semigroup defect, mean {mean:.5f}")
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(mean, table, image, ui={**shown, "text": [table]})


NODES = [SaltSemigroupDefect]
