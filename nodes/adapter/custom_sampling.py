"""A rollout as the SAMPLER of ComfyUI's custom sampling: the graph has noise, sigmas, guider and latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...salt.conditioning import PromptSchedule
from ...salt.errors import InputError
from ...salt.memory import MemoryPolicy
from ...salt.noise import NoiseSource, SeededNoise
from ...salt.rollout import RolloutSettings
from ...salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule, Stepping, add_noise
from ...salt.spec import StudentSpec
from .buffer_pool import pool_of
from .clip_size import check_latent_size, length_text
from .comfy_model import pixels_per_latent
from .core_guidance import NEGATIVE, evaluates_negative
from .input_errors import widget_names
from .model_sampling import noise_scale, scaled_noise
from .previews import preview_decoder
from .queued_prompt import no_vae_here
from .rollout_inputs import ClipStart, first_frame_apart
from .rollout_plan import RolloutPlan
from .rollout_runner import in_model_space, new_clip_memory, run_blocks
from .sampler import SamplerInputs
from .start_picture import start_picture
from .step_rule import check_sigmas_tell_steps, student_stepping
from .student_spec import autoregressive_spec


class GraphNoise:
    """A noise source: initial noise of every block from the graph's NOISE, and noise of its seed between steps and for
    frames past the NOISE's end."""

    def __init__(self, initial: Tensor, between: NoiseSource) -> None:
        self.initial, self.between = initial, between

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.between.seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        if draw > 0:
            return self.between(start, frames, draw)
        given = self.initial[:, :, start : start + frames]
        if given.shape[2] == frames:
            return given
        return torch.cat([given, self.between(start, frames, 0)[:, :, given.shape[2] :]], dim=2)


def check_inputs(inputs: SamplerInputs) -> None:
    """Raise InputError, naming the socket of SamplerCustomAdvanced, for what a rollout does not support."""
    first, last = float(inputs.sigmas[0]), float(inputs.sigmas[-1])
    whole = first >= 1 - 1e-4
    if inputs.mask is not None:
        raise InputError("latent_image", "must not have a noise mask: a rollout generates whole blocks")
    if inputs.noise.ndim != 5:
        shape = list(inputs.noise.shape)
        raise InputError("latent_image", f"found shape {shape}, expected a video latent [B, C, F, H, W]")
    check_latent_size("latent_image", inputs.noise, pixels_per_latent(inputs.patcher))
    if not whole and is_empty(inputs.latent):
        raise InputError("sigmas", f"must start at 1, not at {first:.3f}, where latent_image is empty")
    if whole and not is_empty(inputs.latent):
        raise InputError(
            "latent_image",
            "is not empty, and sigmas that start at 1 leave nothing of it. Connect an empty latent; or, to change this "
            "video, sigmas that start lower (SplitSigmasDenoise); to continue it, use Salt Extend Video",
        )
    if last > 0:
        raise InputError("sigmas", f"must end at 0, not at {last:.3f}: the memory holds clean blocks")
    if others := sorted(inputs.conds.keys() - {"positive", NEGATIVE}):
        raise InputError("guider", f"that guides by {', '.join(others)} is not supported; use BasicGuider or CFGGuider")


def is_empty(latent: Tensor | None) -> bool:
    """Whether a LATENT gives no more than a size, as ComfyUI sees it."""
    return latent is None or not torch.count_nonzero(latent)


def new_frames(frames: int, start_frames: int, spec: StudentSpec) -> int:
    """Latent frames to generate for a LATENT of `frames`, of which a start picture has `start_frames`.

    After a start the blocks may end past the LATENT, which cuts them; they could fill hardly any length that is usual.
    Raises InputError where the blocks do not fill a LATENT without a start, and for a LATENT without room for more.
    """
    block, wanted = spec.frames_per_block, frames - start_frames
    if start_frames:
        if wanted < 1:
            raise InputError(
                "latent_image", f"found {length_text(frames, spec.fps)}, expected more than the start picture's"
            )
        return math.ceil(wanted / block) * block
    first = 1 if spec.independent_first_frame else 0
    if (frames - first) % block or frames < 1:
        below = first + (frames - first) // block * block
        near = " or ".join(length_text(n, spec.fps) for n in (below, below + block) if n > 0)
        raise InputError(
            "latent_image", f"found {length_text(frames, spec.fps)}, expected whole blocks of the student: {near}"
        )
    return frames


@widget_names(frames="latent_image", steps="sigmas")
def sample_clip(
    inputs: SamplerInputs, frames_per_block: int, stepping: Stepping, policy: MemoryPolicy | None
) -> Tensor:
    """Latents [B, C, F, H, W] of a whole clip, in the model's space. Raises InputError for unsupported inputs."""
    from comfy.model_management import current_loaded_models, free_memory

    patcher = inputs.patcher
    spec = autoregressive_spec(patcher, frames_per_block)
    check_sigmas_tell_steps(spec)
    if (chosen := policy or spec.policy).reencodes:
        raise no_vae_here(chosen)
    check_inputs(inputs)
    schedule = Schedule(tuple(NUM_TRAIN_TIMESTEPS * float(x) for x in inputs.sigmas[:-1]), shift=1.0)
    settings = RolloutSettings(
        schedule,
        student_stepping(stepping, spec),
        spec.frames_per_block,
        spec.independent_first_frame,
        guidance=inputs.cfg,
        fuse=True,
    )
    batch, channels, frames, height, width = inputs.noise.shape
    picture = start_picture(patcher, inputs.model.model_options, batch, (height, width))
    clip, given = first_frame_apart(ClipStart((height, width), batch, picture), spec)
    start_frames = 0 if clip.start is None else clip.start.shape[2]
    count = new_frames(frames, start_frames, spec)
    seed = inputs.seed or 0
    plan = RolloutPlan(
        settings, chosen, (), count, clip.size, seed, spec.fps, batch, start=clip.start, given_frame=given
    )
    guided = inputs.cfg != 1 or (inputs.guide is not None and evaluates_negative(patcher))
    negative = inputs.conds[NEGATIVE] if guided and NEGATIVE in inputs.conds else None
    total = start_frames + count
    memory = new_clip_memory(patcher, plan, total, negative is not None)
    needed = sum(m.estimate_bytes(total) for m in memory.branches if m.store is None)
    device = memory.memory.device
    if needed and device.type != "cpu" and plan.policy.residence == "device":
        free_memory(needed, device, [m for m in current_loaded_models if m.model is patcher])
    initial = noise_scale(patcher) * inputs.noise
    if inputs.latent is not None and not is_empty(inputs.latent):
        initial = add_noise(inputs.latent, initial, float(inputs.sigmas[0]))
    between = SeededNoise(plan.seed, batch, channels, height, width, initial.device)
    noise = GraphNoise(initial, scaled_noise(between, patcher))
    prompts, decoder = PromptSchedule.of(inputs.conds["positive"]), preview_decoder(patcher, spec.fps)
    start, given = (in_model_space(patcher.model, x, initial.device) for x in (clip.start, given))
    latents, _ = run_blocks(inputs, plan, memory, noise, prompts, decoder, negative=negative, start=start, given=given)
    for branch in memory.branches:
        pool_of(patcher).release(branch)
    return latents[:, :, :frames]
