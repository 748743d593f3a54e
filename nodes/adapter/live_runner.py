"""A live session inside ComfyUI's sampling: run in ComfyUI's thread, shown and steered through its server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.live.live_model import LiveModelInfo
from ...salt.live.result import LiveResult
from ...salt.live.session import LiveSession
from ...salt.live.settings import LiveSettings
from ...salt.live.video_feed import CameraPictures
from ...salt.memory import MemoryPolicy, estimate_bytes
from ...salt.schedule import Schedule
from ...salt.spec import StudentSpec
from ..io_types import AppliedPrompts, ClipMemory, TimedConditioning
from .buffer_pool import memory_for_output
from .clip_size import FRAMES_PER_LATENT
from .comfy_model import compute_dtype, latent_channels, memory_geometry, pixels_per_token, takes_image_channels
from .fingerprint import fingerprint
from .input_errors import widget_names
from .live_host import ComfyLiveHost, LivePrompt
from .live_inputs import start_of_session
from .live_routes import served
from .rollout_inputs import ClipStart, first_frame
from .running import running
from .sampler import SamplerInputs, SamplerOutput, sample
from .source_clip import source_pictures
from .streaming_vae import check_vae

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from .source_clip import SourceVideo

CANCEL_SECONDS = 0.2  # between two looks at ComfyUI's Cancel, which a paused session would not see
RESERVED_SECONDS = 60  # of a memory without a window, for which ComfyUI makes room


@dataclass(frozen=True)
class LivePlan:
    """A session to run. schedule: of the steps where no control says otherwise. clip: what it begins with, and its
    size. record: the mp4 file. video: what blocks start from; None for the camera of a viewer."""

    settings: LiveSettings
    spec: StudentSpec
    schedule: Schedule
    policy: MemoryPolicy
    clip: ClipStart
    record: Path
    video: SourceVideo | None = None


@dataclass(frozen=True)
class LiveOutcome:
    """latents [1, C, F, H, W], as a LATENT holds them. prompts: as applied. recording: of the branch that it ended on.
    report: in words."""

    latents: Tensor
    memory: ClipMemory
    prompts: AppliedPrompts
    recording: Path
    report: str


@widget_names()
def run_live(model: ModelPatcher, clip: CLIP, vae: VAE, plan: LivePlan) -> LiveOutcome:
    """Run a session until it is stopped, has reached its length, or is cancelled.

    Raises InputError for a MODEL or VAE that it cannot use, RuntimeError where the session fails.
    """
    check_vae(vae, latent_channels(model))
    if takes_image_channels(model):
        raise InputError("model", "found an image-to-video model, expected a text-to-video student")
    pictures = CameraPictures() if plan.video is None else source_pictures(plan.video, plan.spec.fps)
    size, frames = plan.clip.size, 2 * plan.spec.frames_per_block
    geometry = memory_geometry(model, 1, *size)
    if plan.clip.memory is not None:
        plan.clip.memory.memory.check_fits(geometry, fingerprint(model))
    longest = first_frame(plan.clip) + RESERVED_SECONDS * plan.spec.fps // FRAMES_PER_LATENT
    reserved = estimate_bytes(plan.policy, geometry, compute_dtype(model), longest)
    on_device = reserved if plan.policy.residence == "device" else 0

    def run(inputs: SamplerInputs) -> SamplerOutput[tuple[LiveResult[LivePrompt], LiveModelInfo, ClipMemory]]:
        if inputs.guide is not None:
            raise InputError("model", "has nodes that take part in guidance, which a live session cannot call")
        host = ComfyLiveHost(inputs, clip, vae, plan.spec, plan.schedule, plan.policy, size, frames)
        start = start_of_session(inputs.patcher.model, plan.clip, inputs.noise.device)
        session = LiveSession(host, plan.settings, record=plan.record, feed=host.new_feed(pictures), start=start)
        with served(session) as name, running(name, session.stop), stopped_by_cancel(session):
            session.run()
        raise_if_failed(session)
        result = session.result()
        units = plan.spec.fps, pixels_per_token(inputs.patcher)
        memory = memory_for_output(inputs.patcher, ClipMemory(result.memory, result.negative_memory, *units))
        return SamplerOutput(result.latents.to(inputs.noise.device), (result, session.info, memory))

    noise = torch.zeros(1, latent_channels(model), frames, *size)
    sigmas = torch.tensor([*plan.schedule.sigmas, 0.0], dtype=torch.float32)
    seed, guidance = plan.settings.seed, plan.settings.guidance
    try:
        output = sample(model, {}, noise, sigmas, run, seed=seed, reserve=(on_device, frames), cfg=guidance)
    finally:
        if plan.record.is_file() and not plan.record.stat().st_size:
            plan.record.unlink()
    result, info, memory = output.extra
    assert result.recording is not None
    return LiveOutcome(output.latents, memory, applied_prompts(result, info), result.recording, report_of(result, info))


def raise_if_failed(session: LiveSession[LivePrompt]) -> None:
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()
    state = session.state()
    if state.status == "failed":
        raise RuntimeError(f"the live session has ended: {state.message}")


@contextmanager
def stopped_by_cancel(session: LiveSession[LivePrompt]) -> Iterator[None]:
    """While open, ComfyUI's Cancel ends the session, paused or not."""
    from comfy.model_management import processing_interrupted

    over = threading.Event()

    def watch() -> None:
        while not over.wait(CANCEL_SECONDS):
            if processing_interrupted():
                session.stop()
                return

    thread = threading.Thread(target=watch, name="salt-live-cancel", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def applied_prompts(result: LiveResult[LivePrompt], info: LiveModelInfo) -> AppliedPrompts:
    """The prompts as applied, at the seconds of the whole clip at which their blocks begin."""
    clip = replace(info, start=0, joins=False)
    return AppliedPrompts(
        TimedConditioning(
            clip.first_pixel_frame(c.frame) / clip.fps,
            c.conditioning.conditioning,
            c.switch,
            c.keep_sink,
            None if c.first_block is None else c.first_block.conditioning,
        )
        for c in result.prompts.changes
    )


def report_of(result: LiveResult[LivePrompt], info: LiveModelInfo) -> str:
    """The file, frames, and what the outputs do not hold."""
    frames = info.first_pixel_frame(result.start + result.latents.shape[2])
    texts = [change.conditioning for change in result.prompts.changes]
    prompts = 1 + sum(after is not before for before, after in zip(texts, texts[1:], strict=False))
    length = f"{frames} frames ({round(frames / info.fps, 2):g} s), {prompts} prompt{'s' * (prompts != 1)}"
    parts = [f"{result.recording}: {length}"]
    if result.start > info.start:
        parts.append(f"LATENT begins at {round(info.first_pixel_frame(result.start) / info.fps, 2):g} s")
    if result.also_changed:
        parts.append(f"prompts do not hold what else was changed: {', '.join(result.also_changed)}")
    return "; ".join(parts)
