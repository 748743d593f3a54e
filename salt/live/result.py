"""What a live session leaves: latents, memories, and the prompts as they were applied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from ..conditioning import PromptChange, PromptSchedule
from ..errors import InputError
from ..memory import KVMemory
from ..model_input import Condition
from .branches import ChoiceFrom
from .engine import LiveEngine
from .prompt_blend import Conditionings


def digest(latents: Tensor) -> str:
    """SHA-256 of latents, to compare two clips by."""
    return hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class LiveResult(Generic[Condition]):
    """The branch that a session has ended on.

    latents: [1, C, F, H, W] in main memory, from latent frame `start` on: as much as the rewind budget has kept of what
    the session made (and of the latents that it began with).
    memory, negative_memory: at its end, ready to be extended; negative_memory is None without guidance.
    prompts: the schedule as applied. With the first block's seed, steps, guidance and policy, an offline rollout of it
    makes the same latents, unless `also_changed` names others of them that were changed on the way, or `pictures` of a
    camera or a file that blocks were made from.
    changes: everything that was changed, and where. recording: its file.
    """

    latents: Tensor
    start: int
    memory: KVMemory
    negative_memory: KVMemory | None
    prompts: PromptSchedule[Condition]
    also_changed: tuple[str, ...]
    changes: tuple[ChoiceFrom, ...]
    recording: Path | None = None


def applied_changes(
    changes: Sequence[ChoiceFrom], conditionings: Conditionings[Condition], shot_prefix: str
) -> list[PromptChange[Condition]]:
    """The prompts as changes of a schedule, which begins at latent frame 0 also where the session began later.

    shot_prefix: before the text of a shot's first block.
    """
    applied: list[PromptChange[Condition]] = []
    for change in changes:
        choice, conditioning = change.choice, conditionings.of(change.choice.prompt)
        switch = choice.switch if change.start else "keep"
        if not applied:
            applied.append(PromptChange(0, conditioning))
            if switch == "keep":
                continue
        first_block = conditionings.of(choice.prompt.prefixed(shot_prefix)) if switch == "shot" else None
        applied.append(PromptChange(change.start, conditioning, switch, choice.keep_sink, first_block))
    return applied


def result_of(engine: LiveEngine[Condition], recording: Path | None) -> LiveResult[Condition]:
    """Of the current branch; its memory is rebuilt where the session was moved and made no block since.

    Raises InputError for a branch without blocks.
    """
    branch = engine.branch
    if branch.tip is None or branch.tip.given:
        raise InputError("session", "has no blocks on this branch, so there is no result")
    if not engine.in_place:
        engine.rebuild()
    if engine.info.device.type == "cuda":
        torch.cuda.synchronize(engine.info.device)  # copies of latents may still be on their way
    blocks = [block for block in branch.tip.back() if not block.given][::-1]
    engine.live_model.use_loras(branch.tip.choice.loras)
    for memory in (engine.memories.memory, engine.memories.negative_memory):
        memory.fingerprint = engine.live_model.memory_fingerprint()
    changes = tuple(branch.changes)
    prompts = applied_changes(changes, engine.planner.conditionings, engine.info.shot_prefix)
    names = ("seed", "nfe", "guidance", "policy", "loras")
    also = tuple(n for n in names if len({getattr(c.choice, n) for c in changes}) > 1)
    also += ("pictures",) if engine.feed is not None and engine.feed.used else ()
    guided = branch.tip.choice.guidance != 1.0
    return LiveResult(
        torch.cat([b.latents for b in blocks], dim=2),
        blocks[0].start,
        engine.memories.memory,
        engine.memories.negative_memory if guided else None,
        PromptSchedule(prompts),
        also,
        changes,
        recording,
    )
