"""*Salt Rollout*, a whole rollout in one node, and *Salt Extend Video*, which continues a clip from its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..salt.errors import InputError
from .adapter.clip_size import length_text
from .adapter.connections import answer, check_rollout
from .adapter.core_versions import ADVANCED, schema
from .adapter.input_errors import UNCONNECTED
from .adapter.queued_prompt import check_queued_memory
from .adapter.rollout_inputs import (
    RolloutInputs,
    clip_of_memory,
    history_latents,
    plan_clip,
    plan_rollout,
)
from .adapter.rollout_runner import RolloutResult, run_rollout
from .adapter.student_spec import fps_of
from .io_types import ClipMemory, Latent, Memory
from .memory_ui import memory_ui
from .widgets import (
    CLIP_LENGTH,
    model_sockets,
    policy_socket,
    sampling_widgets,
    seconds_widget,
    size_widgets,
    start_sockets,
    video_inputs,
)

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def outputs(latents: str, memory: str) -> list[io.Output]:
    """The outputs of both nodes, with these tooltips."""
    return [
        io.Latent.Output(tooltip=latents),
        Memory.Output(display_name="memory", tooltip=memory),
        io.String.Output(display_name="report", tooltip="Frames, time to the first block, frames per second."),
    ]


class SaltRollout(io.ComfyNode):
    """Prompt to latents, block by block."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltRollout",
            display_name="Salt Rollout",
            category="Salt/sampling",
            description="Generates a video block by block with a KV-cache memory and live previews: model and prompt "
            "in, latents and memory out. With a memory connected it continues that clip and outputs the new frames "
            "only (Salt Extend Video appends them to the clip).",
            search_aliases=[
                *("autoregressive", "text to video", "self forcing", "longlive", "streaming", "kv cache"),
                *("rolling", "streaming video", "infinite", "world model", "real time"),
            ],
            inputs=[
                *model_sockets(),
                policy_socket(),
                *start_sockets("for prompts that recache"),
                seconds_widget(CLIP_LENGTH),
                *size_widgets("Pixels; 0: the MODEL's own. A memory has its own size.", "Pixels; 0: the MODEL's own."),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Clips at once, seed by seed.", **ADVANCED
                ),
                *sampling_widgets(),
                *video_inputs(),
            ],
            outputs=outputs("For Salt Decode (streaming) or VAE Decode.", "To save, inspect, fork, or continue from."),
        )

    @classmethod
    def validate_inputs(
        cls,
        cfg: float | None = None,
        positive: object = UNCONNECTED,
        prompts: object = UNCONNECTED,
        negative: object = UNCONNECTED,
        vae: object = UNCONNECTED,
        memory: object = UNCONNECTED,
        start_image: object = UNCONNECTED,
        latents: object = UNCONNECTED,
        video: object = UNCONNECTED,
    ) -> bool | str:
        """Before anything runs. A linked `cfg` is not known yet; core leaves its range to this."""
        sockets = dict(
            positive=positive, prompts=prompts, negative=negative, vae=vae, memory=memory, start_image=start_image,
            latents=latents, video=video,
        )  # fmt: skip
        said = answer(check_rollout, cfg, **sockets)
        return answer(check_queued_memory, "SaltRollout", **sockets) if said is True else said

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        seconds: float,
        width: int,
        height: int,
        batch_size: int,
        **inputs: Any,
    ) -> io.NodeOutput:
        return node_output(run_rollout(model, plan_clip(model, seconds, (width, height), batch_size, **inputs)))


class SaltExtendVideo(io.ComfyNode):
    """A clip and its memory, made longer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltExtendVideo",
            display_name="Salt Extend Video",
            category="Salt/memory",
            description="Continues a clip from its memory and appends the new frames. The result equals a clip that "
            "was generated in one run. After Salt Rewind Memory the clip is cut back to the memory's position.",
            search_aliases=["continue video", "longer", "salt extend", "video continuation", "infinite", "rolling"],
            inputs=[
                *model_sockets(),
                Memory.Input("memory", tooltip="The clip's memory. It is copied, never changed."),
                io.Latent.Input("latents", tooltip="The whole clip so far."),
                seconds_widget("Length of the part to add."),
                *sampling_widgets(),
            ],
            outputs=outputs("The whole clip.", "The memory after the last frame."),
        )

    @classmethod
    def validate_inputs(
        cls,
        cfg: float | None = None,
        positive: object = UNCONNECTED,
        prompts: object = UNCONNECTED,
        negative: object = UNCONNECTED,
        vae: object = UNCONNECTED,
    ) -> bool | str:
        """Before anything runs. A linked `cfg` is not known yet; core leaves its range to this."""
        sockets = dict(positive=positive, prompts=prompts, negative=negative, vae=vae)
        said = answer(check_rollout, cfg, **sockets)
        return answer(check_queued_memory, "SaltExtendVideo", **sockets) if said is True else said

    @classmethod
    def execute(
        cls, model: ModelPatcher, seconds: float, memory: ClipMemory, latents: Latent, **widgets: Any
    ) -> io.NodeOutput:
        history, frames = history_latents(model, memory, latents), memory.memory.next_frame
        if history.shape[2] < frames:
            found, expected = (length_text(n, fps_of(model)) for n in (history.shape[2], frames))
            raise InputError("latents", f"found a clip of {found}, expected the memory's {expected}")
        inputs = RolloutInputs(model, seconds, **widgets)
        plan = plan_rollout(inputs, clip_of_memory(memory, history), None)
        return node_output(run_rollout(model, plan), history)


def node_output(result: RolloutResult, history: Tensor | None = None) -> io.NodeOutput:
    """Latents, after those of the clip so far, the memory, the report, and the numbers of the memory bar."""
    samples = result.latents
    if history is not None:
        samples = torch.cat([history.to(samples), samples], dim=2)
    ui = {"text": [result.report], **memory_ui(result.memory)}
    return io.NodeOutput({"samples": samples, "salt_fps": result.fps}, result.memory, result.report, ui=ui)


NODES = [SaltRollout, SaltExtendVideo]
