"""From the sockets of *Salt Live* to what a session begins with, checked as *Salt Rollout* checks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.live.start import LiveStart
from ...salt.memory import MemoryPolicy
from ...salt.spec import StudentSpec
from ..io_types import ClipMemory, Latent
from .rollout_inputs import ClipStart, check_memory, clip_of_inputs, first_frame, first_frame_apart, still_length
from .rollout_runner import in_model_space

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE


def live_start(
    model: ModelPatcher,
    vae: VAE,
    size: tuple[int, int],
    policy: MemoryPolicy | None,
    own: MemoryPolicy,
    cfg: float,
    memory: ClipMemory | None,
    start_image: Tensor | None,
    latents: Latent | None,
) -> ClipStart:
    """What the sockets say. size: width and height in pixels. own: the MODEL's policy.

    Raises InputError naming the socket or widget.
    """
    if memory is not None:
        check_memory(memory, policy, cfg, guided=cfg != 1)
    still = 1 if start_image is None else still_length(policy or own)
    clip = clip_of_inputs(model, vae, size, 1, memory, start_image, latents, still)
    if clip.batch != 1:
        raise InputError("latents" if memory is None else "memory", f"found a batch of {clip.batch}, expected 1")
    return clip


def last_frame(seconds: float, spec: StudentSpec, clip: ClipStart) -> int | None:
    """Latent frame of the clip at which a session of so many seconds ends; None for 0 seconds, without an end."""
    from ...salt.pipeline.inputs import PipelineInputs, plan_length

    if not seconds:
        return None
    clip, _ = first_frame_apart(clip, spec)
    start_frames = 0 if clip.start is None else clip.start.shape[2]
    extends = clip.memory is not None
    length = plan_length(
        PipelineInputs(seconds=seconds), spec, start_frames=start_frames, extends=extends, seamless=extends
    )
    return first_frame(clip) + length.frames


def start_of_session(base: BaseModel, clip: ClipStart, device: torch.device) -> LiveStart | None:
    """The same in the engine's terms; None for a new clip."""
    if clip.memory is not None:
        history = in_model_space(base, clip.history, torch.device("cpu"))
        return LiveStart(None, clip.memory.memory, clip.memory.negative, history)
    start = in_model_space(base, clip.start, device)
    return None if start is None else LiveStart(start)
