"""The state of a session as its viewers see it."""

from __future__ import annotations

from typing import Literal

from .adapters import all_strengths
from .branches import LiveBranch
from .engine import LiveEngine
from .live_model import LiveModelInfo
from .messages import BookmarkState, BranchState, PromptInEffect, State
from .pacing import Pacer
from .viewers import Viewers

Status = Literal["warming", "playing", "paused", "stopped", "failed"]
MAX_PROMPTS_SHOWN = 64  # of a branch, the latest


def state_of(
    engine: LiveEngine,
    *,
    status: Status,
    message: str,
    pacer: Pacer,
    viewers: Viewers,
    fps_made: float,
    recording: bool,
) -> State:
    """fps_made: frames made in a second."""
    info, branch, steering = engine.info, engine.branch, engine.branch.steering
    frame = info.first_pixel_frame(branch.end)
    texts = steering.prompt.texts()
    return State(
        status=status,
        branch=branch.id,
        block=branch.blocks,
        frame=frame,
        seconds=frame / info.fps,
        generation=engine.generation,
        prompts=tuple(PromptInEffect(text, weight, frame) for text, weight in texts.items()),
        nfe=info.schedule.nfe if steering.nfe is None else steering.nfe,
        guidance=steering.guidance,
        policy=str(steering.policy),
        seed=steering.seed,
        pace=pacer.pace,
        fps_made=fps_made,
        lead_blocks=pacer.lead(viewers) / (info.frames_per_block * info.temporal_scale),
        drops=viewers.drops,
        bookmarks=tuple(
            BookmarkState(b.id, b.name, b.branch, info.first_pixel_frame(b.end)) for b in engine.bookmarks.values()
        ),
        branches=tuple(branch_state(b, info) for b in engine.branches.values()),
        rewind_from=engine.rewind_from(branch),
        viewers=len(viewers),
        recording=recording,
        message=message,
        loras=all_strengths(info.loras, steering.loras),
        strength=steering.strength,
        pictures="" if engine.feed is None else engine.feed.source.kind,
    )


def branch_state(branch: LiveBranch, info: LiveModelInfo) -> BranchState:
    prompts: list[PromptInEffect] = []
    for change in branch.changes:
        frame = info.first_pixel_frame(change.start)
        texts = change.choice.prompt.texts()
        text = max(texts, key=lambda t: texts[t])
        if not prompts or prompts[-1].text != text:
            prompts.append(PromptInEffect(text, 1.0, frame))
    return BranchState(
        branch.id,
        branch.parent,
        info.first_pixel_frame(branch.fork_start),
        info.first_pixel_frame(branch.end),
        tuple(prompts[-MAX_PROMPTS_SHOWN:]),
    )
