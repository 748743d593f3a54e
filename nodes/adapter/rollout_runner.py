"""Host 1: one rollout of the engine inside core's sampling, as the sampling nodes ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...salt.conditioning import PromptChange, PromptSchedule, Switch
from ...salt.memory import MemoryPolicy, estimate_bytes
from ...salt.noise import NoiseSource, SeededNoise
from ...salt.rollout import RolloutSettings, block_lengths, context_lengths, rollout
from ..io_types import ClipMemory
from .buffer_pool import at_rest, furnish
from .comfy_model import compute_dtype, memory_geometry, new_memory
from .fingerprint import fingerprint
from .previews import RolloutProgress, preview_decoder
from .sampler import Sampling, sample

NEGATIVE = "negative"


@dataclass(frozen=True)
class Change:
    """From latent frame `frame` on, CONDITIONING `conditioning`; `switch`: what the memory does there."""

    frame: int
    conditioning: Any
    switch: Switch = "keep"


@dataclass
class RolloutPlan:
    """A rollout to be played. size: latent (height, width). frames: new latent frames.

    start: latents [B, 16, F, H, W] as a LATENT holds them, which the clip begins with. memory: what it goes on from;
    past: the clip so far, which a prompt change that recaches needs. vae: for previews.
    """

    settings: RolloutSettings
    policy: MemoryPolicy
    changes: Sequence[Change]
    frames: int
    size: tuple[int, int]
    seed: int
    batch: int = 1
    negative: Any = None
    start: Tensor | None = None
    memory: ClipMemory | None = None
    past: Tensor | None = None
    vae: Any = None
    report: str = field(default="", init=False)

    @property
    def first(self) -> int:
        """Latent frame of the clip at which the rollout goes on."""
        return 0 if self.memory is None else self.memory.memory.next_frame

    @property
    def given(self) -> int:
        return 0 if self.start is None else self.start.shape[2]

    @property
    def frames_per_call(self) -> int:
        """Latent frames in the largest forward: a block, two in a fused pass, all that a recache encodes again."""
        blocks = block_lengths(self.first + self.given, self.frames, self.settings)
        frames = max(blocks) * (2 if self.settings.fuse else 1)
        if any(change.switch == "recache" for change in self.changes):
            before = self.first + self.given + self.frames - blocks[-1]
            frames = max(frames, min(self.policy.window or before, before))
        return frames


def check_memory_fits(model: Any, memory: ClipMemory, plan: RolloutPlan) -> None:
    """Raise ValueError where a memory was written by another model, or for another size or batch."""
    kv = memory.memory
    ours = memory_geometry(model, plan.batch, *plan.size)
    if kv.geometry != ours:
        found, expected = ((g.batch, g.height * 16, g.width * 16, g.layers) for g in (kv.geometry, ours))
        raise ValueError(
            f"memory: found one for (batch, height, width, layers) = {found}, expected {expected}; it goes on only "
            "with the size and model it was written with"
        )
    if kv.fingerprint != fingerprint(model):
        raise ValueError(
            f"memory: found one written by another model or LoRA (fingerprint {kv.fingerprint}), expected "
            f"{fingerprint(model)}"
        )


def play(model: Any, plan: RolloutPlan) -> tuple[Tensor, ClipMemory]:
    """Latents of the start and the new frames [B, 16, F, H, W], as a LATENT holds them, and the memory after them.

    Core loads the MODEL with room for the memory; what the wire's memory holds is copied, never written.
    """
    if plan.memory is not None:
        check_memory_fits(model, plan.memory, plan)
    conds = {f"prompt {i}": change.conditioning for i, change in enumerate(plan.changes)}
    if plan.negative is not None:
        conds[NEGATIVE] = plan.negative
    left: list[ClipMemory] = []

    def work(s: Sampling) -> Tensor:
        latents, memory = _play(s, plan, s.conds)
        left.append(at_rest(s.patcher, memory))
        return latents

    total = plan.first + plan.given + plan.frames
    geometry = memory_geometry(model, plan.batch, *plan.size)
    branches = 2 if plan.negative is not None else 1
    size = branches * estimate_bytes(plan.policy, geometry, compute_dtype(model), total)
    on_device = size if plan.policy.residence == "device" else 0
    # Image conditioning is cut to absolute frames, so it is fitted to the whole clip.
    noise = torch.zeros(plan.batch, 16, total, *plan.size)
    latents = sample(
        model, conds, noise, _sigmas(plan.settings), work, seed=plan.seed, reserve=(on_device, plan.frames_per_call)
    )  # fmt: skip
    return latents, left[0]


def _sigmas(settings: RolloutSettings) -> Tensor:
    return torch.tensor([*settings.schedule.sigmas, 0.0], dtype=torch.float32)


def _play(s: Sampling, plan: RolloutPlan, conds: dict[str, Any]) -> tuple[Tensor, ClipMemory]:
    base, device = s.patcher.model, s.noise.device
    if plan.memory is None:
        memory = fresh_memory(s.patcher, plan, plan.given + plan.frames, plan.negative is not None)
    else:
        # Without guidance the unconditional branch would stay behind the clip, and guide from there another day.
        memory = (plan.memory if plan.negative is not None else ClipMemory(plan.memory.memory)).taken(device)
    noise = SeededNoise(plan.seed, plan.batch, 16, *plan.size, device=device)
    prompts = PromptSchedule(
        [PromptChange(c.frame, conds[f"prompt {i}"], c.switch) for i, c in enumerate(plan.changes)]
    )

    def inside(latents: Tensor | None) -> Tensor | None:
        return None if latents is None else base.process_latent_in(latents.to(device, torch.float32))

    start, past = inside(plan.start), inside(plan.past)
    decoder = preview_decoder(s.patcher, plan.vae, plan.frames_per_call)
    new, plan.report = run_blocks(s, plan, memory, noise, prompts, conds.get(NEGATIVE), start, past, decoder)
    parts = ([] if start is None else [start]) + new
    return torch.cat(parts, dim=2), memory


def fresh_memory(patcher: Any, plan: RolloutPlan, frames: int, guided: bool) -> ClipMemory:
    """Empty memories for a clip of `frames`, in buffers that an earlier run has left, if there are any."""
    kv = new_memory(patcher, plan.policy, plan.batch, *plan.size, frames)
    clip = ClipMemory(kv, kv.empty_like() if guided else None)
    for branch in (clip.memory, clip.negative):
        if branch is not None:
            furnish(patcher, branch, frames)
    return clip


def run_blocks(
    s: Sampling, plan: RolloutPlan, memory: ClipMemory, noise: NoiseSource, prompts: PromptSchedule, negative: Any,
    start: Tensor | None, past: Tensor | None, decoder: Any,
) -> tuple[list[Tensor], str]:  # fmt: skip
    """The engine's loop with progress and previews; blocks in the model's space, and a line on how fast they came."""
    blocks = len(block_lengths(plan.first + plan.given, plan.frames, plan.settings))
    fused = plan.settings.fuse and plan.policy.fuses
    given = len(context_lengths(plan.given, plan.settings))
    calls = blocks * plan.settings.schedule.nfe + (1 if fused else blocks) + given
    watch = RolloutProgress(calls, decoder, [x for x in (past, start) if x is not None and x.shape[2]])
    new = []
    for block in rollout(
        s.model, prompts, memory.memory, noise, plan.frames, plan.settings, negative=negative,
        negative_memory=memory.negative, initial_latents=start, history_latents=past, on_step=watch.step,
    ):  # fmt: skip
        new.append(block.latents)
        watch.block(block)
    return new, watch.done()
