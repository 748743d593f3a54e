"""Host 1: the parts for core's custom sampling: *Salt Sigmas*, *Salt Sampler*, and *Salt Prompt Schedule*."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..salt.conditioning import PromptSchedule, Switch
from ..salt.memory import MemoryPolicy
from ..salt.noise import SeededNoise
from ..salt.rollout import RolloutSettings
from ..salt.schedule import Schedule, check_steps, step_list
from ..salt.spec import StudentSpec
from ..salt.timeline import parse_timeline
from .adapter.buffer_pool import leave
from .adapter.previews import preview_decoder
from .adapter.rollout_runner import NEGATIVE, RolloutPlan, fresh_memory, run_blocks
from .adapter.sampler import Sampling, sampler
from .adapter.student_spec import autoregressive, spec_of
from .io_types import ADVANCED, Policy, Prompts, schema

NFE = ["student's", "2", "4", "8", "custom"]
STEPPING = ["sde", "ode"]


def schedule_of(nfe: str, steps: str, shift: float, spec: StudentSpec | None) -> Schedule:
    """The step list and shift that the widgets ask for. Raises ValueError naming the widget."""
    spec = spec or StudentSpec()
    shift = shift or spec.shift
    if nfe == "custom":
        try:
            return Schedule(check_steps([float(s) for s in steps.replace(";", ",").split(",") if s.strip()]), shift)
        except ValueError as error:
            raise ValueError(f"steps: found {steps!r}, expected falling numbers as 1000, 750, 500 ({error})") from None
    if nfe in NFE[1:4]:
        return Schedule(step_list(int(nfe)), shift)
    return Schedule(spec.steps, shift)


def step_inputs() -> list[Any]:
    """Widgets that choose the step list, on every node that samples."""
    return [
        io.Combo.Input(
            "nfe",
            options=NFE,
            default="student's",
            tooltip="Model evaluations per block: fewer is faster. student's takes what the MODEL was trained for (4 "
            "where it does not say); custom takes the list in steps.",
        ),
        io.String.Input(
            "steps",
            default="1000, 750, 500, 250",
            tooltip="For nfe custom: falling steps in (0, 1000], before the shift.",
            **ADVANCED,
        ),
        io.Float.Input(
            "shift",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Flow shift. 0 takes what the MODEL was trained for (5 where it does not say, as every "
            "published Wan student was).",
            **ADVANCED,
        ),
    ]


class SaltSigmas(io.ComfyNode):
    """The few-step list as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltSigmas",
            display_name="Salt Sigmas",
            category="Salt/sampling",
            description="The 2-, 4- or 8-step list that Salt students are trained on, as SIGMAS for core's custom "
            "sampling: with Salt Sampler for autoregressive students, with core's euler or lcm for bidirectional ones.",
            search_aliases=["scheduler", "steps", "nfe", "few step", "wan sigmas"],
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL whose own steps (nfe student's) and shift (0) are taken.",
                ),
                *step_inputs(),
            ],
            outputs=[io.Sigmas.Output(tooltip="Noise levels in [0, 1], ending with 0.")],
        )

    @classmethod
    def execute(cls, nfe: str, steps: str, shift: float, model: Any = None) -> io.NodeOutput:
        spec = None if model is None else spec_of(model)
        sigmas = schedule_of(nfe, steps, shift, spec).sigmas
        return io.NodeOutput(torch.tensor([*sigmas, 0.0], dtype=torch.float32))


class SaltSampler(io.ComfyNode):
    """The block-by-block rollout as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltSampler",
            display_name="Salt Sampler",
            category="Salt/sampling",
            description="Block-by-block sampling against a KV-cache memory, as a SAMPLER for SamplerCustomAdvanced. "
            "The length is the LATENT's, noise and seed are the NOISE's, guidance is the GUIDER's.",
            search_aliases=["autoregressive", "ar video", "self forcing", "causal", "kv cache"],
            inputs=[
                io.Int.Input(
                    "frames_per_block",
                    default=0,
                    min=0,
                    max=21,
                    tooltip="Latent frames per block. 0 takes what the MODEL was trained for; set it for students "
                    "whose loader does not say (GGUF).",
                ),
                io.Combo.Input(
                    "stepping",
                    options=STEPPING,
                    default="sde",
                    tooltip="sde mixes fresh noise in between steps, as students are trained; ode takes Euler steps.",
                ),
                Policy.Input(
                    "policy",
                    optional=True,
                    tooltip="What the memory keeps; without it, the MODEL's own.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, frames_per_block: int, stepping: str, policy: MemoryPolicy | None = None) -> io.NodeOutput:
        def work(s: Sampling) -> Tensor:
            return sample_clip(s, frames_per_block, stepping, policy)

        return io.NodeOutput(sampler(work))


class NoiseOfGraph:
    """The graph's NOISE as initial noise of every block, and noise of its seed between steps."""

    def __init__(self, initial: Tensor, between: SeededNoise) -> None:
        self.initial, self.between = initial, between

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.between.seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        if draw == 0:
            return self.initial[:, :, start : start + frames]
        return self.between(start, frames, draw)


def sample_clip(s: Sampling, frames_per_block: int, stepping: Any, policy: MemoryPolicy | None) -> Tensor:
    """A whole clip as core's custom sampling asks for it. Raises ValueError for what a rollout cannot do."""
    from comfy.model_management import current_loaded_models, free_memory

    if s.mask is not None:
        raise ValueError("LATENT: found a noise mask, expected none: a rollout makes whole blocks")
    if s.noise.ndim != 5:
        raise ValueError(f"LATENT: found shape {list(s.noise.shape)}, expected a video latent [B, 16, F, H, W]")
    if float(s.sigmas[0]) < 1 - 1e-4:
        raise ValueError(f"SIGMAS: found a start at {float(s.sigmas[0]):.3f}, expected 1: a rollout begins with noise")
    if float(s.sigmas[-1]) > 0:
        raise ValueError(f"SIGMAS: found an end at {float(s.sigmas[-1]):.3f}, expected 0: a block is remembered clean")
    if others := sorted(s.conds.keys() - {"positive", NEGATIVE}):
        raise ValueError(f"GUIDER: found one that guides by {', '.join(others)}, expected BasicGuider or CFGGuider")
    spec = autoregressive(s.patcher, frames_per_block)
    schedule = Schedule(tuple(1000 * float(x) for x in s.sigmas[:-1]), shift=1.0)
    settings = RolloutSettings(
        schedule, stepping, spec.frames_per_block, spec.independent_first_frame, guidance=s.cfg, fuse=True
    )
    batch, channels, frames, height, width = s.noise.shape
    plan = RolloutPlan(settings, policy or spec.policy, (), frames, (height, width), s.seed or 0, batch)
    guided = s.cfg != 1 and NEGATIVE in s.conds
    memory = fresh_memory(s.patcher, plan, frames, guided)
    branches = [m for m in (memory.memory, memory.negative) if m is not None]
    wanted = sum(m.estimate_bytes(frames) for m in branches if m.store is None)
    device = memory.memory.device
    if wanted and device.type != "cpu" and plan.policy.residence == "device":
        free_memory(wanted, device, [m for m in current_loaded_models if m.model is s.patcher])
    noise = NoiseOfGraph(s.noise, SeededNoise(plan.seed, batch, channels, height, width, s.noise.device))
    negative = s.conds[NEGATIVE] if guided else None
    prompts = PromptSchedule.of(s.conds["positive"])
    blocks, _ = run_blocks(s, plan, memory, noise, prompts, negative, None, None, preview_decoder(s.patcher))
    for branch in branches:
        leave(s.patcher, branch)
    return torch.cat(blocks, dim=2)


@dataclass(frozen=True)
class TimedConditioning:
    """From `seconds` of the clip on, CONDITIONING `conditioning`."""

    seconds: float
    conditioning: Any
    switch: Switch


class SaltPromptSchedule(io.ComfyNode):
    """Prompts at seconds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltPromptSchedule",
            display_name="Salt Prompt Schedule",
            category="Salt/sampling",
            description="Prompts that change as the clip is made, a line each: SECONDS [keep|recache|cut]: PROMPT.",
            search_aliases=["prompt travel", "interactive prompts", "timeline", "longlive", "scene change"],
            inputs=[
                io.Clip.Input("clip", tooltip="The MODEL's text encoder: umt5-xxl for Wan, or Salt Tiny's."),
                io.String.Input(
                    "timeline",
                    multiline=True,
                    default="0: a red circle moving right\n2.5 recache: a blue circle moving right",
                    tooltip="One prompt a line: SECONDS [keep|recache|cut]: PROMPT. keep changes the words only; "
                    "recache lets the memory of the last seconds be read under the new words (LongLive), so that they "
                    "take hold at once; cut forgets the scene.",
                ),
            ],
            outputs=[
                Prompts.Output(display_name="prompts", tooltip="For Salt Rollout and Extend Video."),
                io.Conditioning.Output(display_name="first", tooltip="The first prompt alone, for other samplers."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, timeline: str) -> io.NodeOutput:
        if clip is None:
            raise ValueError("clip: found none (the checkpoint holds no text encoder), expected Wan's umt5-xxl")
        made = [
            TimedConditioning(p.seconds, clip.encode_from_tokens_scheduled(clip.tokenize(p.text)), p.switch)
            for p in parse_timeline(timeline)
        ]
        return io.NodeOutput(made, made[0].conditioning)


NODES = [SaltSigmas, SaltSampler, SaltPromptSchedule]
