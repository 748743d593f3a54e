"""Host 1: *Salt Rollout*, everything in one node, and *Extend Video*, which goes on from a memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..salt.memory import MemoryPolicy
from ..salt.rollout import RolloutSettings
from .adapter.rollout_runner import Change, RolloutPlan, play
from .adapter.student_spec import autoregressive
from .io_types import ADVANCED, ClipMemory, Memory, Policy, Prompts, schema
from .memory_ui import memory_ui
from .nodes_sampling import STEPPING, TimedConditioning, schedule_of, step_inputs

PIXELS = 8  # pixels per latent row and column of Wan 2.1


@dataclass(frozen=True)
class RolloutInputs:
    """Widgets that both nodes have."""

    model: Any
    seconds: float
    seed: int
    nfe: str
    steps: str
    shift: float
    stepping: Any
    cfg: float
    frames_per_block: int
    positive: Any = None
    prompts: list[TimedConditioning] | None = None
    negative: Any = None
    vae: Any = None


def shared_inputs() -> list[Any]:
    """Inputs before and widgets of both nodes, in order."""
    return [
        io.Model.Input("model", tooltip="An autoregressive student of Wan 2.1, from any loader."),
        io.Conditioning.Input("positive", optional=True, tooltip="The prompt; or connect prompts."),
        Prompts.Input("prompts", optional=True, tooltip="Prompts at seconds, from Salt Prompt Schedule."),
        io.Conditioning.Input("negative", optional=True, tooltip="Only for cfg other than 1."),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Wan 2.1's VAE, for a start image and full-quality live previews. Without it previews are made by "
            "TAEHV (taew2_1 in models/vae_approx) or as latent colours.",
        ),
    ]


def sampling_widgets() -> list[Any]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="The same seed gives the same blocks, whatever the length: a longer clip begins like the shorter.",
        ),
        *step_inputs(),
        io.Combo.Input(
            "stepping",
            options=STEPPING,
            default="sde",
            tooltip="sde mixes fresh noise in between steps, as students are trained; ode takes Euler steps.",
            **ADVANCED,
        ),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="Guidance. Few-step students need none: 1 is off. Above, every step is evaluated twice.",
            **ADVANCED,
        ),
        io.Int.Input(
            "frames_per_block",
            default=0,
            min=0,
            max=21,
            tooltip="Latent frames per block; 0 takes what the MODEL was trained for.",
            **ADVANCED,
        ),
    ]


def planned(
    asked: RolloutInputs, size: tuple[int, int], batch: int, policy: MemoryPolicy | None, memory: ClipMemory | None,
    start: Tensor | None, past: Tensor | None,
) -> RolloutPlan:  # fmt: skip
    """The rollout that the widgets ask for. Raises ValueError naming the widget or socket."""
    from ..salt.pipeline.inputs import PipelineInputs, change_frame, plan_length

    spec = autoregressive(asked.model, asked.frames_per_block)
    if (asked.positive is None) == (asked.prompts is None):
        found = "neither" if asked.positive is None else "both"
        raise ValueError(f"positive, prompts: found {found}, expected one of them connected")
    if asked.cfg != 1 and asked.negative is None:
        raise ValueError(f"cfg: found {asked.cfg:g} without a negative, expected 1 or a negative connected")
    if memory is not None and asked.cfg != 1 and memory.negative is None:
        raise ValueError(f"cfg: found {asked.cfg:g} with a memory made without guidance, expected 1")
    if memory is not None and policy is not None and policy != memory.memory.policy:
        raise ValueError(f"policy: found {policy} beside a memory of {memory.memory.policy}, expected none")
    given = 0 if start is None else start.shape[2]
    length = plan_length(
        PipelineInputs(seconds=asked.seconds),
        spec,
        given=given,
        extends=memory is not None,
        seamless=memory is not None,
    )
    timed = asked.prompts or [TimedConditioning(0.0, asked.positive, "keep")]
    changes = [Change(change_frame(t.seconds) if t.seconds else 0, t.conditioning, t.switch) for t in timed]
    if memory is not None and past is None:
        # A change takes effect at the next block's start; after a cut a recache needs nothing from before.
        first = memory.memory.next_frame - spec.frames_per_block
        taking = [c.switch for c in changes if first < c.frame <= first + length.frames and c.switch != "keep"]
        if taking[:1] == ["recache"]:
            raise ValueError("prompts: found a recache beside a memory, expected the clip so far connected to latents")
    schedule = schedule_of(asked.nfe, asked.steps, asked.shift, spec)
    settings = RolloutSettings(
        schedule, asked.stepping, spec.frames_per_block, spec.independent_first_frame, asked.cfg, fuse=True
    )
    chosen = memory.memory.policy if memory is not None else policy or spec.policy
    chosen.check_block(spec.frames_per_block)
    negative = asked.negative if asked.cfg != 1 else None
    return RolloutPlan(
        settings, chosen, changes, length.frames, size, asked.seed, batch, negative, start, memory, past, asked.vae
    )


def whole_video(latent: dict[str, Any]) -> Tensor:
    """A LATENT's samples [B, 16, F, H, W]. Raises ValueError for an image latent or a noise mask."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != 16:
        raise ValueError(f"latents: found shape {list(samples.shape)}, expected a Wan 2.1 video [B, 16, F, H, W]")
    if latent.get("noise_mask") is not None:
        raise ValueError("latents: found a noise mask, expected none: a rollout makes whole blocks")
    return samples


def start_latents(vae: Any, image: Tensor, width: int, height: int, batch: int) -> Tensor:
    """A start image (or the frames of a start video) [T, H, W, 3] as latents [batch, 16, F, h, w]."""
    import comfy.utils

    if vae is None:
        raise ValueError("start_image: found one without a vae, expected Wan 2.1's VAE connected")
    frames = image[: (image.shape[0] - 1) // 4 * 4 + 1, ..., :3].movedim(-1, 1)
    pixels = comfy.utils.common_upscale(frames, width, height, "bicubic", "center").movedim(1, -1)
    latents = vae.encode(pixels)
    if latents.ndim != 5 or latents.shape[1] != 16:
        raise ValueError(f"vae: found one that makes latents {list(latents.shape)}, expected Wan 2.1's VAE")
    return latents.expand(batch, -1, -1, -1, -1)


def clip_of(memory: ClipMemory, latents: dict[str, Any]) -> Tensor:
    """Latents [B, 16, F, H, W] up to where the memory stands, which after Rewind Memory is before the clip's end.

    Raises ValueError where they are of another batch or size than the memory.
    """
    past, g = whole_video(latents), memory.memory.geometry
    expected, found = [g.batch, 16, 2 * g.height, 2 * g.width], [*past.shape[:2], *past.shape[3:]]
    if found != expected:
        raise ValueError(f"latents: found batch, channels, height, width {found}, expected the memory's {expected}")
    return past[:, :, : memory.memory.next_frame]


class SaltRollout(io.ComfyNode):
    """Prompt to latents, block by block."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltRollout",
            display_name="Salt Rollout",
            category="Salt/sampling",
            description="Makes a video block by block against a KV-cache memory, with live previews: model and prompt "
            "in, latents and memory out. With a memory connected it goes on where that one stands and gives the new "
            "frames only (Extend Video joins them).",
            search_aliases=["autoregressive", "text to video", "self forcing", "longlive", "streaming", "kv cache"],
            inputs=[
                *shared_inputs(),
                Policy.Input("policy", optional=True, tooltip="What the memory keeps; without it, the MODEL's own."),
                Memory.Input("memory", optional=True, tooltip="Go on from here. It is copied, never changed."),
                io.Image.Input("start_image", optional=True, tooltip="Picture or frames the clip begins with."),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Latents the clip begins with; with a memory: the clip so far, for prompts that recache.",
                ),
                io.Float.Input(
                    "seconds",
                    default=5.0,
                    min=0.1,
                    max=3600.0,
                    step=0.1,
                    tooltip="Length at 16 frames a second, rounded up to whole blocks (0.75 s for blocks of 3).",
                ),
                io.Int.Input("width", default=832, min=16, max=4096, step=16, tooltip="Pixels; a memory has its own."),
                io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip="Pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Clips at once, seed by seed."),
                *sampling_widgets(),
            ],
            outputs=[
                io.Latent.Output(tooltip="For Salt Decode (streaming) or VAE Decode."),
                Memory.Output(display_name="memory", tooltip="To save, inspect, fork, or go on from."),
                io.String.Output(display_name="report", tooltip="Frames, time to the first block, frames per second."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, seconds: float, width: int, height: int, batch_size: int, policy: Any = None,
        memory: ClipMemory | None = None, start_image: Any = None, latents: Any = None, **asked: Any,
    ) -> io.NodeOutput:  # fmt: skip
        size, start, past = (height // PIXELS, width // PIXELS), None, None
        if latents is not None and start_image is not None:
            raise ValueError("start_image, latents: found both, expected one of them")
        if memory is not None:
            g = memory.memory.geometry
            size, batch_size = (g.height * 2, g.width * 2), g.batch
            if start_image is not None:
                raise ValueError("memory, start_image: found both, expected one of them")
            past = None if latents is None else clip_of(memory, latents)
        elif latents is not None:
            start = whole_video(latents)
            batch_size, size = start.shape[0], (start.shape[3], start.shape[4])
        elif start_image is not None:
            start = start_latents(asked.get("vae"), start_image, width, height, batch_size)
        plan = planned(RolloutInputs(model, seconds, **asked), size, batch_size, policy, memory, start, past)
        return finished(model, plan, None)


class SaltExtendVideo(io.ComfyNode):
    """A clip and its memory, made longer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltExtendVideo",
            display_name="Extend Video",
            category="Salt/memory",
            description="Goes on from a memory and joins the new frames to the clip so far. The result equals a clip "
            "made in one go. After Rewind Memory the clip is cut back to where the memory stands.",
            search_aliases=["continue video", "longer", "salt extend", "video continuation"],
            inputs=[
                *shared_inputs(),
                Memory.Input("memory", tooltip="Where the clip stands. It is copied, never changed."),
                io.Latent.Input("latents", tooltip="The clip so far, from its beginning."),
                io.Float.Input("seconds", default=5.0, min=0.1, max=3600.0, step=0.1, tooltip="How much to add."),
                *sampling_widgets(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The whole clip."),
                Memory.Output(display_name="memory", tooltip="The memory after it."),
                io.String.Output(display_name="report", tooltip="Frames, time to the first block, frames per second."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, seconds: float, memory: ClipMemory, latents: dict[str, Any], **asked: Any
    ) -> io.NodeOutput:
        past, stands, g = clip_of(memory, latents), memory.memory.next_frame, memory.memory.geometry
        if past.shape[2] < stands:
            raise ValueError(f"latents: found {past.shape[2]} latent frames, expected the clip's {stands} so far")
        plan = planned(
            RolloutInputs(model, seconds, **asked), (g.height * 2, g.width * 2), g.batch, None, memory, None, past
        )
        return finished(model, plan, past)


def finished(model: Any, plan: RolloutPlan, past: Tensor | None) -> io.NodeOutput:
    """Play, and hand out: latents behind the clip so far, the memory, the report, and the memory bar's numbers."""
    new, memory = play(model, plan)
    samples = new if past is None else torch.cat([past.to(new), new], dim=2)
    ui = {"text": [plan.report], **memory_ui(memory)}
    return io.NodeOutput({"samples": samples}, memory, plan.report, ui=ui)


NODES = [SaltRollout, SaltExtendVideo]
