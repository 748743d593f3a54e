"""StreamDiffusionV2's stream batch: one model call holds a chunk at each of its denoising steps.

After the first chunk the memory is copied once for every step of the list. Call c brings chunk c to its first step,
chunk c - 1 to its second, and so on, as one batch whose rows are the steps ("stages"), each with a memory of its own.
A chunk is finished with the last stage, so results lag by one call less than there are steps. Stages that no chunk has
reached yet compute from zeros at the first free position, which the first real chunk overwrites.
Source: StreamDiffusionV2 (Apache-2.0).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..block_plan import BlockPlan, RolloutSettings
from ..conditioning import Conditioning, PromptChange
from ..errors import InputError
from ..memory import KVMemory
from ..model_input import FlowModel, ModelInput
from ..noise import NoiseSource
from ..rollout import Block, rollout
from ..schedule import add_noise, flow_to_x0, nearest_levels
from .motion import MotionNoise

# Noise [1, C, 1, H, W] that stage `stage` adds after streaming call `call`.
StageNoise = Callable[[int, int], Tensor]


@torch.no_grad()
def stream_batch(
    model: FlowModel[Conditioning],
    conditioning: Conditioning,
    memory: KVMemory,
    noise: NoiseSource,
    frames: int,
    settings: RolloutSettings,
    video: MotionNoise,
    stage_noise: StageNoise | None = None,
) -> Iterator[Block]:
    """Yield the chunks of `frames` latent frames of one clip, as `salt.rollout` would, one model call a chunk.

    memory: empty, of one clip and a policy that keeps the last step; the first chunk is written to it, later ones to
    copies. settings: steps of rule `streamdiffusion2`, blocks of one frame, no guidance. noise: as of a rollout; its
    draws after the first are those of the first chunk. stage_noise: of later chunks; `noise` by default.
    Raises InputError for other settings and memories.
    """
    steps = settings.schedule.steps
    for field, found, expected in (
        ("memory", str(memory.policy) if not memory.policy.keeps_last_step else "", ""),
        ("guidance", settings.guidance, 1.0),
        ("frames_per_block", settings.frames_per_block, 1),
        ("rule", settings.schedule.rule, "streamdiffusion2"),
        ("batch", memory.geometry.batch, 1),
    ):
        if found != expected:
            wanted = expected or "an overwrite policy"
            raise InputError(field, f"found {found}, expected {wanted} for a stream batch")
    first = list(rollout(model, conditioning, memory, noise, settings.first_block, settings, video=video))
    chunks = frames - settings.first_block
    yield replace(first[0], count=chunks + 1)
    stages = _Stages(model, conditioning, memory, settings)
    for call in range(chunks + len(steps) - 1):
        began, start = time.perf_counter(), settings.first_block + call
        if call < chunks:
            plan = video(BlockPlan([PromptChange(0, conditioning)], settings, noise), start)
            enters = plan.noise(start, 1, 0) if plan.latents is None else plan.latents
            stages.enter(enters, memory.policy.position(start), plan.settings.schedule.steps[0])
        else:
            stages.enter(torch.zeros_like(stages.x[:1]), stages.starts[0] + 1, steps[0])
        x0 = stages.step()
        for stage in range(len(steps) - 1):
            chunk = settings.first_block + call - stage
            drawn = noise(chunk, 1, stage + 1) if stage_noise is None and chunk < frames else None
            fresh = stage_noise(call, stage) if stage_noise is not None else drawn
            if fresh is not None:
                stages.x[stage : stage + 1] = add_noise(x0[stage : stage + 1], fresh.to(x0), stages.levels[stage + 1])
        done = call - len(steps) + 1
        if done >= 0:
            at = settings.first_block + done
            seconds = time.perf_counter() - began
            yield Block(done + 1, chunks + 1, at, at + 1, x0[-1:].clone(), 1, seconds, noise.seeds)


class _Stages:
    """Latents, positions, timesteps and memory of all steps. x: [steps, C, 1, H, W]."""

    def __init__(
        self, model: FlowModel[Conditioning], conditioning: Conditioning, memory: KVMemory, settings: RolloutSettings
    ) -> None:
        steps = settings.schedule.steps
        self.model, self.shift = model, settings.schedule.shift
        self.memory = memory.repeated(len(steps))
        self.conditioning = replace(conditioning, text=conditioning.text.expand(len(steps), -1, -1))
        self.timesteps = list(steps)
        self.levels = nearest_levels(steps, self.shift)
        self.starts = [memory.policy.position(memory.next_frame)] * len(steps)
        self.x = torch.empty(0)

    def enter(self, latents: Tensor, start: int, timestep: float) -> None:
        """The next chunk [1, C, 1, H, W] at position `start`; every chunk moves on by one stage."""
        if not self.x.numel():
            self.x = latents.new_zeros(len(self.timesteps), *latents.shape[1:])
        self.x = torch.cat([latents, self.x[:-1]])
        self.starts = [start, *self.starts[:-1]]
        self.timesteps[0] = timestep
        self.levels[0] = nearest_levels([timestep], self.shift)[0]

    def step(self) -> Tensor:
        """The clean prediction of every stage [steps, C, 1, H, W], which becomes its latents."""
        memory_pass = self.memory.open_stages(self.starts)
        timesteps = self.x.new_tensor(self.timesteps)[:, None]
        flow = self.model(ModelInput(self.x, timesteps, self.conditioning, memory_pass))
        self.memory.commit(memory_pass)
        x0 = flow_to_x0(self.x, flow, self.x.new_tensor(self.levels))
        self.x = x0.clone()
        return x0
