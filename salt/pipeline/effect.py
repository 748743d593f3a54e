"""Options that change nothing: refused where the clip would not be what was asked for, said where it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..conditioning import PromptSchedule, keeps_no_sink
from ..errors import InputError
from ..memory import KVMemory
from ..rollout import RolloutSettings
from ..spec import FPS
from .inputs import PipelineInputs

log = logging.getLogger(__name__)


def check_effects(
    inputs: PipelineInputs,
    settings: RolloutSettings,
    prompts: PromptSchedule,
    memory: KVMemory | None,
    frames: int,
    temporal_scale: int = 4,
    fps: int = FPS,
) -> None:
    """Raise InputError for an option without effect. frames: latent frames from the memory's `next_frame` to the end.

    Options that change the speed alone are said in the log.
    """
    if not inputs.guided:
        for name in ("negative_prompt", "negative_prompt_embeds", "negative_memory"):
            if _given(getattr(inputs, name)):
                raise InputError(name, "has no effect without guidance: guidance_scale is 1")
    if memory is not None:
        if memory.policy.kind != "shots" and any(change.switch == "shot" for change in prompts.changes):
            expected = "expected one like shots:8,window:32,offset:8"
            raise InputError("prompt_schedule", f"found a shot with the memory policy {memory.policy}, {expected}")
        if any(change.keep_sink and change.switch != "recache" for change in prompts.changes):
            raise InputError("prompt_schedule", "keeps the sink with another switch than recache, expected recache")
        if keeps_no_sink(memory.policy, prompts.changes):
            raise InputError("prompt_schedule", f"keeps the sink, and the memory policy {memory.policy} has none")
        end = memory.next_frame + frames
        if late := changes_past_end([change.frame for change in prompts.changes], end, settings.frames_per_block):
            last = (end - settings.frames_per_block) * temporal_scale / fps
            raise InputError(
                "prompt_schedule",
                f"found a change at {late[0] * temporal_scale / fps:g} s, expected one up to {last:g} s, where the "
                "clip's last block begins",
            )
    if inputs.fuse and (memory is None or not memory.policy.fuses):
        why = "a bidirectional model" if memory is None else f"memory policy {memory.policy}"
        log.warning("fuse has no effect with %s", why)
    if inputs.stepping is not None and settings.schedule.first.nfe == 1:
        log.warning("stepping has no effect with one step per block")
    for name in ("num_first_steps", "first_steps"):
        if getattr(inputs, name) is not None and (why := _no_first_steps(inputs, settings, memory)):
            raise InputError(name, f"has no effect {why}")


def _no_first_steps(inputs: PipelineInputs, settings: RolloutSettings, memory: KVMemory | None) -> str:
    """Why steps of the first block change nothing; empty where they do."""
    if memory is None:
        return "with a bidirectional model"
    if memory.next_frame:
        return "on a clip that goes on from a memory"
    if inputs.video is not None:
        return "with a video, from whose pictures the first block starts"
    if settings.schedule.first.nfe == settings.schedule.nfe:
        return f"unless it has more than the {settings.schedule.nfe} steps of the other blocks"
    return ""


def changes_past_end(changes: Sequence[int], end: int, frames_per_block: int) -> list[int]:
    """Of the latent frames of prompt changes those at which no block of a clip of `end` latent frames begins, nor any
    later one."""
    return [frame for frame in changes if frame > max(end - frames_per_block, 0)]


def _given(value: object) -> bool:
    """Whether an argument says anything: the empty text, or a list of empty texts, is the default spelled out."""
    return any(value) if isinstance(value, (str, list, tuple)) else value is not None
