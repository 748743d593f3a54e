"""Parts for ComfyUI's custom sampling, *Salt Sigmas* and *Salt Sampler*, and *Salt Prompt Schedule*."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..salt.conditioning import parse_timeline
from ..salt.errors import InputError
from ..salt.memory import MemoryPolicy
from ..salt.schedule import Stepping
from ..salt.spec import SHOT_PREFIX, StudentSpec
from .adapter.connections import answer
from .adapter.core_versions import schema
from .adapter.custom_sampling import sample_clip
from .adapter.input_errors import UNCONNECTED, widget_names
from .adapter.live_host import word_table
from .adapter.queued_prompt import check_queued_memory, no_vae_here
from .adapter.rollout_inputs import schedule_of
from .adapter.sampler import SamplerInputs, new_sampler
from .adapter.step_rule import check_sigmas_tell_blocks, check_sigmas_tell_steps
from .adapter.student_spec import spec_of, with_patched_shift
from .io_types import Conditioning, Prompts, TimedConditioning
from .widgets import frames_per_block_widget, policy_socket, step_widgets, stepping_widget

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP


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
                    tooltip="The MODEL whose own steps (nfe student's) and shift (0) are used.",
                ),
                *step_widgets(),
            ],
            outputs=[io.Sigmas.Output(tooltip="Noise levels in [0, 1], ending with 0.")],
        )

    @classmethod
    def execute(cls, nfe: str, steps: str, shift: float, model: ModelPatcher | None = None) -> io.NodeOutput:
        spec = None if model is None else spec_of(model) or with_patched_shift(model, StudentSpec())
        if spec is not None:
            check_sigmas_tell_steps(spec)
        schedule = schedule_of(nfe, steps, shift, spec)
        check_sigmas_tell_blocks(schedule, "nfe")
        return io.NodeOutput(torch.tensor([*schedule.sigmas, 0.0], dtype=torch.float32))


class SaltSampler(io.ComfyNode):
    """The block-by-block rollout as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltSampler",
            display_name="Salt Sampler",
            category="Salt/sampling",
            description="Block-by-block sampling with a KV-cache memory, as a SAMPLER for SamplerCustomAdvanced. "
            "The LATENT sets the length, the NOISE the noise and seed, the GUIDER the guidance.",
            search_aliases=["autoregressive", "ar video", "self forcing", "causal", "kv cache"],
            inputs=[
                frames_per_block_widget(
                    "Latent frames per block. 0 uses what the MODEL was trained for; set it for students "
                    "whose loader does not know it (GGUF)."
                ),
                stepping_widget(),
                policy_socket(),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, policy: object = UNCONNECTED) -> bool | str:
        """Before anything runs."""
        return answer(check_queued_memory, "SaltSampler", policy=policy)

    @classmethod
    def execute(cls, frames_per_block: int, stepping: Stepping, policy: MemoryPolicy | None = None) -> io.NodeOutput:
        if policy is not None and policy.reencodes:
            raise no_vae_here(policy)

        def run(inputs: SamplerInputs) -> Tensor:
            return sample_clip(inputs, frames_per_block, stepping, policy)

        return io.NodeOutput(new_sampler(run))


class SaltPromptSchedule(io.ComfyNode):
    """Prompts at seconds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltPromptSchedule",
            display_name="Salt Prompt Schedule",
            category="Salt/sampling",
            description="Prompts that change during the clip, one per line: SECONDS "
            "[keep|recache|cut|shot|recache-sink]: PROMPT.",
            search_aliases=["prompt travel", "interactive prompts", "timeline", "longlive", "scene change"],
            inputs=[
                io.Clip.Input("clip", tooltip="The MODEL's text encoder: umt5-xxl for Wan, or Salt Tiny's."),
                io.String.Input(
                    "timeline",
                    multiline=True,
                    default="0: a red circle moving right\n2.5 recache: a blue circle moving right",
                    tooltip="One prompt a line: SECONDS [WORD]: PROMPT. keep changes the prompt only; "
                    "recache encodes the last seconds again under the new prompt (LongLive), so that it takes effect "
                    "at once (recache-sink: but for the sink); cut clears the memory for a new scene; shot begins a "
                    "new shot (LongLive 2.0).",
                ),
            ],
            outputs=[
                Prompts.Output(display_name="prompts", tooltip="For Salt Rollout and Salt Extend Video."),
                io.Conditioning.Output(display_name="first", tooltip="The first prompt alone, for other samplers."),
            ],
        )

    @classmethod
    @widget_names()
    def execute(cls, clip: CLIP | None, timeline: str) -> io.NodeOutput:
        if clip is None:
            raise InputError("clip", "is empty (the checkpoint holds no text encoder); connect Wan's umt5-xxl")

        def encode(text: str) -> Conditioning:
            return clip.encode_from_tokens_scheduled(clip.tokenize(text))

        lines, prompts = parse_timeline(timeline), []
        knows_prefix = any(p.switch == "shot" for p in lines) and word_table(clip) is None
        prefix = SHOT_PREFIX if knows_prefix else ""
        for p in lines:
            text = p.text.removeprefix(prefix) if p.switch == "shot" else p.text
            first_block = encode(prefix + text) if p.switch == "shot" and prefix else None
            prompts.append(TimedConditioning(p.seconds, encode(text), p.switch, p.keep_sink, first_block))
        return io.NodeOutput(prompts, prompts[0].conditioning)


NODES = [SaltSigmas, SaltSampler, SaltPromptSchedule]
