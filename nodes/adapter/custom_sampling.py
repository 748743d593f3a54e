"""A rollout as the SAMPLER of ComfyUI's custom sampling: the graph has noise, sigmas, guider and latent."""

from __future__ import annotations

import torch
from torch import Tensor

from ...salt.block_plan import Stepping
from ...salt.conditioning import PromptSchedule
from ...salt.errors import InputError
from ...salt.memory import MemoryPolicy
from ...salt.noise import SeededNoise
from ...salt.rollout import RolloutSettings
from ...salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule
from .buffer_pool import pool_of
from .input_errors import widget_names
from .previews import preview_decoder
from .rollout_runner import NEGATIVE, RolloutPlan, new_clip_memory, run_blocks
from .sampler import SamplerInputs
from .student_spec import autoregressive_spec


class GraphNoise:
    """A noise source: initial noise of every block from the graph's NOISE, and noise of its seed between steps."""

    def __init__(self, initial: Tensor, between: SeededNoise) -> None:
        self.initial, self.between = initial, between

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.between.seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        if draw == 0:
            return self.initial[:, :, start : start + frames]
        return self.between(start, frames, draw)


def check_inputs(inputs: SamplerInputs) -> None:
    """Raise InputError, naming the socket of SamplerCustomAdvanced, for what a rollout does not support."""
    first, last = float(inputs.sigmas[0]), float(inputs.sigmas[-1])
    if inputs.mask is not None:
        raise InputError("latent_image", "must not have a noise mask: a rollout generates whole blocks")
    if inputs.noise.ndim != 5:
        shape = list(inputs.noise.shape)
        raise InputError("latent_image", f"found shape {shape}, expected a video latent [B, 16, F, H, W]")
    if first < 1 - 1e-4:
        raise InputError("sigmas", f"must start at 1, not at {first:.3f}: a rollout starts from noise")
    if last > 0:
        raise InputError("sigmas", f"must end at 0, not at {last:.3f}: the memory holds clean blocks")
    if others := sorted(inputs.conds.keys() - {"positive", NEGATIVE}):
        raise InputError("guider", f"that guides by {', '.join(others)} is not supported; use BasicGuider or CFGGuider")


@widget_names(frames="latent_image")
def sample_clip(
    inputs: SamplerInputs, frames_per_block: int, stepping: Stepping, policy: MemoryPolicy | None
) -> Tensor:
    """Latents [B, 16, F, H, W] of a whole clip, in the model's space. Raises InputError for unsupported inputs."""
    from comfy.model_management import current_loaded_models, free_memory

    check_inputs(inputs)
    patcher = inputs.patcher
    spec = autoregressive_spec(patcher, frames_per_block)
    schedule = Schedule(tuple(NUM_TRAIN_TIMESTEPS * float(x) for x in inputs.sigmas[:-1]), shift=1.0)
    settings = RolloutSettings(
        schedule, stepping, spec.frames_per_block, spec.independent_first_frame, guidance=inputs.cfg, fuse=True
    )
    batch, channels, frames, height, width = inputs.noise.shape
    plan = RolloutPlan(settings, policy or spec.policy, (), frames, (height, width), inputs.seed or 0, batch)
    negative = inputs.conds[NEGATIVE] if inputs.cfg != 1 and NEGATIVE in inputs.conds else None
    memory = new_clip_memory(patcher, plan, frames, negative is not None)
    needed = sum(m.estimate_bytes(frames) for m in memory.branches if m.store is None)
    device = memory.memory.device
    if needed and device.type != "cpu" and plan.policy.residence == "device":
        free_memory(needed, device, [m for m in current_loaded_models if m.model is patcher])
    noise = GraphNoise(inputs.noise, SeededNoise(plan.seed, batch, channels, height, width, inputs.noise.device))
    prompts = PromptSchedule.of(inputs.conds["positive"])
    blocks, _ = run_blocks(inputs, plan, memory, noise, prompts, preview_decoder(patcher), negative=negative)
    for branch in memory.branches:
        pool_of(patcher).release(branch)
    return torch.cat(blocks, dim=2)
