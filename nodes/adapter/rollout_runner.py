"""One rollout of the engine inside ComfyUI's sampling: the plan, the run and its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.acceleration.finite_check import FiniteCheck
from ...salt.acceleration.free_memory import check_bytes
from ...salt.conditioning import PromptChange, PromptSchedule
from ...salt.memory import MemoryPolicy, estimate_bytes
from ...salt.noise import NoiseSource, SeededNoise
from ...salt.rollout import RolloutSettings, block_lengths, count_model_calls, rollout
from ...salt.spec import FPS
from ..io_types import ClipMemory, Conditioning
from .buffer_pool import memory_for_output, pool_of
from .comfy_model import LATENT_CHANNELS, Conds, compute_dtype, memory_geometry, new_memory, takes_image_channels
from .core_guidance import NEGATIVE
from .fingerprint import fingerprint
from .input_errors import widget_names
from .model_sampling import scaled_noise
from .previews import MAX_EARLIER_LATENTS, PreviewDecoder, RolloutProgress, preview_decoder
from .sampler import SamplerInputs, SamplerOutput, sample

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE


@dataclass(frozen=True)
class RolloutPlan:
    """A rollout to run. size: latent (height, width). frames: new latent frames. negative: for guidance.

    notes: on inputs that have no effect, for the report.
    start: latents [B, 16, F, H, W], as a LATENT holds them, that the clip starts with. memory: of a clip to continue;
    history: the clip so far, which a prompt change that recaches needs. vae: for previews.
    """

    settings: RolloutSettings
    policy: MemoryPolicy
    prompts: Sequence[PromptChange[Conditioning]]
    frames: int
    size: tuple[int, int]
    seed: int
    batch: int = 1
    negative: Conditioning | None = None
    start: Tensor | None = None
    memory: ClipMemory | None = None
    history: Tensor | None = None
    vae: VAE | None = None
    notes: Sequence[str] = ()

    @property
    def first_frame(self) -> int:
        """Latent frame of the clip at which the rollout starts."""
        return 0 if self.memory is None else self.memory.memory.next_frame

    @property
    def start_frames(self) -> int:
        return 0 if self.start is None else self.start.shape[2]

    @property
    def blocks(self) -> list[int]:
        """Lengths of the new blocks, in latent frames."""
        return block_lengths(self.first_frame + self.start_frames, self.frames, self.settings)

    @property
    def frames_per_call(self) -> int:
        """Latent frames in the largest forward: a block, two in a fused pass, all that a recache encodes again."""
        frames = max(self.blocks) * (2 if self.settings.fuse else 1)
        if any(change.switch == "recache" for change in self.prompts):
            before = self.first_frame + self.start_frames + self.frames - self.blocks[-1]
            frames = max(frames, min(self.policy.window or before, before))
        return frames

    @property
    def model_calls(self) -> int:
        """Model calls as a progress bar counts them."""
        return count_model_calls(len(self.blocks), self.settings, self.policy, self.start_frames)


@dataclass(frozen=True)
class RolloutResult:
    """latents: start and new frames [B, 16, F, H, W], as a LATENT holds them. report: frames and speed, in words,
    and which inputs have had no effect."""

    latents: Tensor
    memory: ClipMemory
    report: str


@widget_names()
def run_rollout(model: ModelPatcher, plan: RolloutPlan) -> RolloutResult:
    """Run a plan. ComfyUI loads the MODEL with room for the memory; the plan's own memory is copied, never written.

    Raises InputError where the memory does not fit the model, and what the engine's `rollout` raises.
    """
    geometry = memory_geometry(model, plan.batch, *plan.size)
    if plan.memory is not None:
        plan.memory.memory.check_fits(geometry, fingerprint(model))
    conds = {f"prompt {i}": change.conditioning for i, change in enumerate(plan.prompts)}
    if plan.negative is not None:
        conds[NEGATIVE] = plan.negative

    def run(inputs: SamplerInputs) -> SamplerOutput[tuple[ClipMemory, str]]:
        return run_in_sampler(inputs, plan)

    total = plan.first_frame + plan.start_frames + plan.frames
    branches = 2 if plan.negative is not None else 1
    size = branches * estimate_bytes(plan.policy, geometry, compute_dtype(model), total)
    on_device = size if plan.policy.residence == "device" else 0
    # What lies in main memory; room on a GPU is made by ComfyUI, which moves other models out.
    in_main = 4 * LATENT_CHANNELS * plan.batch * total * math.prod(plan.size)
    in_main += size if model.load_device.type == "cpu" else size - on_device
    seconds = plan.frames * 4 // FPS
    check_bytes("seconds", in_main, torch.device("cpu"), f"a clip of {seconds} s", "seconds", seconds)
    # Image conditioning is cut to absolute frames, so it is fitted to the whole clip. Otherwise nothing but a shape,
    # which ComfyUI moves to the device all the same.
    fitted = total if takes_image_channels(model) else min(total, plan.frames_per_call)
    noise = torch.zeros(plan.batch, LATENT_CHANNELS, fitted, *plan.size)
    sigmas = torch.tensor([*plan.settings.schedule.sigmas, 0.0], dtype=torch.float32)
    reserve = on_device, plan.frames_per_call
    output = sample(model, conds, noise, sigmas, run, seed=plan.seed, reserve=reserve, cfg=plan.settings.guidance)
    memory, report = output.extra
    return RolloutResult(output.latents, memory, "; ".join([report, *plan.notes]))


def run_in_sampler(inputs: SamplerInputs, plan: RolloutPlan) -> SamplerOutput[tuple[ClipMemory, str]]:
    """Latents in the model's space, the memory as a node's output, and the report."""
    base, device, patcher = inputs.patcher.model, inputs.noise.device, inputs.patcher
    if plan.memory is None:
        memory = new_clip_memory(patcher, plan, plan.start_frames + plan.frames, plan.negative is not None)
    else:
        # Without guidance the unconditional branch would stay behind the clip, and guide from there another time.
        memory = (plan.memory if plan.negative is not None else ClipMemory(plan.memory.memory)).copied(device)
    noise = scaled_noise(SeededNoise(plan.seed, plan.batch, LATENT_CHANNELS, *plan.size, device=device), patcher)
    prompts = PromptSchedule(
        [PromptChange(p.frame, inputs.conds[f"prompt {i}"], p.switch) for i, p in enumerate(plan.prompts)]
    )

    recaches = any(change.switch == "recache" for change in plan.prompts)
    start = in_model_space(base, plan.start, device)
    history = in_model_space(base, plan.history, device if recaches else torch.device("cpu"))
    decoder = preview_decoder(patcher, plan.vae, plan.frames_per_call)
    latents, report = run_blocks(
        inputs, plan, memory, noise, prompts, decoder, negative=inputs.conds.get(NEGATIVE), start=start, history=history
    )
    return SamplerOutput(latents, (memory_for_output(patcher, memory), report))


def in_model_space(base: BaseModel, latents: Tensor | None, device: torch.device) -> Tensor | None:
    """Latents as a LATENT holds them, as the model takes them, on `device`."""
    return None if latents is None else base.process_latent_in(latents.to(device, torch.float32))


def new_clip_memory(patcher: ModelPatcher, plan: RolloutPlan, frames: int, guided: bool) -> ClipMemory:
    """Empty memories for a clip of `frames`, in buffers that an earlier run has left, if there are any."""
    kv = new_memory(patcher, plan.policy, plan.batch, *plan.size, frames)
    clip = ClipMemory(kv, kv.empty_like() if guided else None)
    for branch in clip.branches:
        pool_of(patcher).assign_buffers(branch, frames)
    return clip


def run_blocks(
    inputs: SamplerInputs,
    plan: RolloutPlan,
    memory: ClipMemory,
    noise: NoiseSource,
    prompts: PromptSchedule[Conds],
    decoder: PreviewDecoder | None,
    *,
    negative: Conds | None = None,
    start: Tensor | None = None,
    history: Tensor | None = None,
) -> tuple[Tensor, str]:
    """The engine's loop with progress and previews: the start and the new latents in the model's space, and the report.

    The latents lie on ComfyUI's intermediate device, usually the CPU, where every block goes as it is finished.
    start, history: as in the plan, but in the model's space; on the device, the history only for a recache.
    Raises NotFiniteError for a block of NaN or infinity.
    """
    from comfy.model_management import intermediate_device

    if inputs.guide is not None or any(len(entries) > 1 for entries in inputs.conds.values()):
        # One call has one sigma, by which guidance, and the choice between entries, differ from step to step.
        plan = replace(plan, settings=replace(plan.settings, fuse=False))
    kept, device = intermediate_device(), inputs.noise.device
    earlier = [x[:, :, -MAX_EARLIER_LATENTS:].to(device) for x in (history, start) if x is not None and x.shape[2]]
    progress = RolloutProgress(plan.model_calls, decoder, earlier)
    parts, checks = [] if start is None else [start.to(kept)], FiniteCheck()
    for block in rollout(
        inputs.model,
        prompts,
        memory.memory,
        noise,
        plan.frames,
        plan.settings,
        negative=negative,
        negative_memory=memory.negative,
        initial_latents=start,
        history_latents=history,
        on_step=progress.step,
        guide=inputs.guide,
    ):
        checks.add(block)
        checks.check_known()
        # A CUDA device copies in the order of its stream while the host runs ahead.
        parts.append(block.latents.to(kept, non_blocking=block.latents.is_cuda))
        progress.block(block)
    checks.check()
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return torch.cat(parts, dim=2), progress.report()
