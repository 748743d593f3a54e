"""One rollout of the engine inside ComfyUI's sampling: the plan, the run and its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.acceleration.finite_check import FiniteCheck
from ...salt.acceleration.free_memory import check_bytes
from ...salt.conditioning import PromptChange, PromptSchedule
from ...salt.memory import estimate_bytes
from ...salt.noise import NoiseSource, SeededNoise
from ...salt.rollout import rollout
from ..io_types import ClipMemory
from .block_outputs import BlockOutput, KeptLatents, VideoOutput
from .buffer_pool import memory_for_output, pool_of
from .clip_size import frame_count, start_text
from .comfy_model import (
    Conds,
    compute_dtype,
    latent_channels,
    memory_geometry,
    new_memory,
    pixels_per_token,
    takes_image_channels,
)
from .core_guidance import NEGATIVE
from .fingerprint import fingerprint
from .head_encoder import head_encoder
from .input_errors import widget_names
from .kept_runs import KeptRun, KeptRuns
from .model_sampling import scaled_noise
from .previews import MAX_EARLIER_LATENTS, PreviewDecoder, RolloutProgress, preview_decoder
from .rollout_plan import RolloutPlan
from .running import running
from .sampler import SamplerInputs, SamplerOutput, sample
from .streaming_vae import ComfyStreamEncoder, LoadedEncoder

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class RolloutResult:
    """latents: start and new frames [B, C, F, H, W], as a LATENT holds them. fps: of the clip. report: frames and
    speed, in words, and which inputs have had no effect."""

    latents: Tensor
    fps: int
    memory: ClipMemory
    report: str


@widget_names()
def run_rollout(model: ModelPatcher, plan: RolloutPlan, video: VideoOutput | None = None) -> RolloutResult:
    """Run a plan. ComfyUI loads the MODEL with room for the memory; the plan's own memory is copied, never written.

    video: where the blocks go instead of a LATENT; the latents of the result are then the last block's.
    Raises InputError where the memory does not fit the model, and what the engine's `rollout` raises.
    """
    if video is None and plan.source is not None and plan.vae is not None:
        plan = replace(plan, source=plan.source.encoded(ComfyStreamEncoder(plan.vae)))
    geometry = memory_geometry(model, plan.batch, *plan.size)
    if plan.memory is not None:
        plan.memory.memory.check_fits(geometry, fingerprint(model))
    conds = {f"prompt {i}": change.conditioning for i, change in enumerate(plan.prompts)}
    conds |= {f"shot {i}": c.first_block for i, c in enumerate(plan.prompts) if c.first_block is not None}
    if plan.negative is not None:
        conds[NEGATIVE] = plan.negative
    total = plan.first_frame + plan.start_frames + plan.frames
    branches = 2 if plan.negative is not None else 1
    size = branches * estimate_bytes(plan.policy, geometry, compute_dtype(model), total)
    on_device = size if plan.policy.residence == "device" else 0
    # What lies in main memory; room on a GPU is made by ComfyUI, which moves other models out.
    in_main = 4 * latent_channels(model) * plan.batch * total * math.prod(plan.size) if video is None else 0
    in_main += size if model.load_device.type == "cpu" else size - on_device
    seconds = frame_count(plan.frames) // plan.fps
    check_bytes("seconds", in_main, torch.device("cpu"), f"a clip of {seconds} s", "seconds", seconds)
    # Image conditioning is cut to absolute frames, so it is fitted to the whole clip. Otherwise nothing but a shape,
    # which ComfyUI moves to the device all the same.
    fitted = total if takes_image_channels(model) else min(total, plan.frames_per_call)
    noise = torch.zeros(plan.batch, latent_channels(model), fitted, *plan.size)
    sigmas = torch.tensor([*plan.settings.schedule.sigmas, 0.0], dtype=torch.float32)
    reserve = on_device, plan.frames_per_call
    with running() as now:
        # Image conditioning is fitted to the clip's length, so other blocks may depend on it.
        keeps = video is None and bool(now.node) and not takes_image_channels(model)
        # Such a memory cannot be encoded again as it was, and such noise follows from the blocks before.
        by_motion = plan.source is not None and plan.settings.schedule.rule == "streamdiffusion2"
        keeps = keeps and not plan.policy.keeps_last_step and not by_motion
        kept = KeptRuns(model, now.node) if keeps else None

        def run(inputs: SamplerInputs) -> SamplerOutput[tuple[ClipMemory, str]]:
            return run_in_sampler(inputs, plan, video, lambda: now.stopped, kept)

        output = sample(model, conds, noise, sigmas, run, seed=plan.seed, reserve=reserve, cfg=plan.settings.guidance)
    memory, report = output.extra
    return RolloutResult(output.latents, plan.fps, memory, "; ".join([report, *plan.notes]))


def run_in_sampler(
    inputs: SamplerInputs,
    plan: RolloutPlan,
    video: VideoOutput | None = None,
    stopped: Callable[[], bool] | None = None,
    kept: KeptRuns | None = None,
) -> SamplerOutput[tuple[ClipMemory, str]]:
    """Latents in the model's space, the memory as a node's output, and the report."""
    base, device, patcher = inputs.patcher.model, inputs.noise.device, inputs.patcher
    if plan.memory is None:
        memory = new_clip_memory(patcher, plan, plan.start_frames + plan.frames, plan.negative is not None)
    else:
        # Without guidance the unconditional branch would stay behind the clip, and guide from there another time.
        memory = (plan.memory if plan.negative is not None else replace(plan.memory, negative=None)).copied(device)
    shape = (latent_channels(patcher), *plan.size)
    noise = scaled_noise(SeededNoise(plan.seed, plan.batch, *shape, device=device), patcher)
    prompts = PromptSchedule(
        [
            PromptChange(p.frame, inputs.conds[f"prompt {i}"], p.switch, p.keep_sink, inputs.conds.get(f"shot {i}"))
            for i, p in enumerate(plan.prompts)
        ]
    )

    recaches = any(change.switch == "recache" for change in plan.prompts)
    start = in_model_space(base, plan.start, device)
    given = in_model_space(base, plan.given_frame, device)
    history = in_model_space(base, plan.history, device if recaches else torch.device("cpu"))
    decoder = preview_decoder(patcher, plan.fps, None if video is not None else plan.vae, plan.frames_per_call)
    if video is not None and decoder is not None:
        decoder = video
    latents, report = run_blocks(
        inputs, plan, memory, noise, prompts, decoder, negative=inputs.conds.get(NEGATIVE), start=start,
        history=history, output=video, stopped=stopped, kept=kept, given=given,
    )  # fmt: skip
    return SamplerOutput(latents, (memory_for_output(patcher, memory), report))


def in_model_space(base: BaseModel, latents: Tensor | None, device: torch.device) -> Tensor | None:
    """Latents as a LATENT holds them, as the model takes them, on `device`."""
    return None if latents is None else base.process_latent_in(latents.to(device, torch.float32))


def new_clip_memory(patcher: ModelPatcher, plan: RolloutPlan, frames: int, guided: bool) -> ClipMemory:
    """Empty memories for a clip of `frames`, in buffers that an earlier run has left, if there are any."""
    kv = new_memory(patcher, plan.policy, plan.batch, *plan.size, frames)
    clip = ClipMemory(kv, kv.empty_like() if guided else None, plan.fps, pixels_per_token(patcher))
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
    output: BlockOutput | None = None,
    stopped: Callable[[], bool] | None = None,
    kept: KeptRuns | None = None,
    given: Tensor | None = None,
) -> tuple[Tensor, str]:
    """The engine's loop with progress and previews: the start and the new latents in the model's space, and the report.

    start, history: as in the plan, but in the model's space; on the device, the history only for a recache. output:
    where the blocks go, one after another as they are finished. stopped: asked after every block, whether it is the
    last. kept: the node's run before. given: the clip's first latent frame, in the model's space.
    Raises NotFiniteError for a block of NaN or infinity.
    """
    if inputs.guide is not None or any(len(entries) > 1 for entries in inputs.conds.values()):
        # One call has one sigma, by which guidance, and the choice between entries, differ from step to step.
        plan = replace(plan, settings=replace(plan.settings, fuse=False))
    device, output = inputs.noise.device, output or KeptLatents()
    resumed = None if kept is None or inputs.guide is not None else kept.find(plan)
    before, made = ([], []) if resumed is None else (resumed.before, resumed.made)
    first = plan.end - plan.frames + sum(x.shape[2] for x in (*before, *made))  # latent frame that is made now
    finished = [x for x in (start, *before, *made) if x is not None and x.shape[2]]
    output.begin(inputs.patcher, history, plan.frames_per_call)
    for latents in finished:
        output.put(latents)
    reencode = None
    if plan.vae is not None and plan.policy.reencodes:
        # Of a memory that was rewound the rollout has the history decoded itself.
        past = [None if memory.memory.needs_history else history, start, *before]
        known = [x for x in past if x is not None and x.shape[2]]
        reencode = head_encoder(plan.vae, inputs.patcher, plan.frames_per_call, output, known)
    earlier = [] if decoder is output else latest_frames([*([] if history is None else [history]), *finished], device)
    calls = plan.model_calls if resumed is None else plan.calls_after(len(before), len(made))
    progress, checks = RolloutProgress(calls, decoder, earlier), FiniteCheck()
    run = KeptRun(plan) if resumed is None else resumed.run
    if resumed is not None:
        resumed.restore(memory)
        past = [x for x in (history, start, *before) if x is not None]
        recaches = any(change.switch == "recache" for change in prompts.changes)
        start, history = None, torch.cat([x.to(device) for x in past], dim=2) if past and recaches else None
    reached = 0

    def ends() -> bool:
        return reached >= first and stopped is not None and stopped()

    for block in rollout(
        inputs.model,
        prompts,
        memory.memory,
        noise,
        plan.frames - sum(x.shape[2] for x in before),
        plan.settings,
        negative=negative,
        negative_memory=memory.negative,
        initial_latents=start,
        history_latents=history,
        first_frame=given,
        made_latents=torch.cat(made, dim=2).to(device) if made else None,
        ends=ends,
        video=plan.video(source_encoder(plan, inputs.patcher), device),
        on_step=progress.step,
        guide=inputs.guide,
        reencode=reencode,
    ):
        reached = block.stop
        if kept is not None:
            run.add(block.latents, memory, reached == plan.end or ends())
        if block.stop > first:
            checks.add(block)
            checks.check_known()
            output.put(block.latents)
            progress.block(block)
    checks.check()
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    if kept is not None:
        kept.keep(run)
    report = [progress.report()]
    if first > plan.end - plan.frames:
        report.append(
            f"went on from the run before at {start_text(first, plan.fps)} s: nothing before that has changed"
        )
    if memory.memory.next_frame < plan.end:
        ended, whole = (start_text(frame, plan.fps) for frame in (memory.memory.next_frame, plan.end))
        report.append(f"stopped and kept at {ended} s of {whole} s")
    return output.latents(), "; ".join(report)


def source_encoder(plan: RolloutPlan, patcher: ModelPatcher) -> LoadedEncoder | None:
    """For a source video that is encoded while blocks are made."""
    if plan.source is None or plan.source.latents is not None or plan.vae is None:
        return None
    return LoadedEncoder(ComfyStreamEncoder(plan.vae), patcher, plan.frames_per_call)


def latest_frames(parts: list[Tensor], device: torch.device) -> list[Tensor]:
    """The last latents of a clip in parts, as many as previews show, on the device that decodes them."""
    found: list[Tensor] = []
    for part in reversed(parts):
        missing = MAX_EARLIER_LATENTS - sum(x.shape[2] for x in found)
        if missing > 0 and part.shape[2]:  # the clip so far is empty where its memory was rewound to 0
            found.insert(0, part[:, :, -missing:].to(device))
    return found
