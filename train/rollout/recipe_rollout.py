"""The engine's rollout with a recipe's settings: model callable, noise, memory and clip length.

Shared by training rollouts, alignment references, samples and a teacher's trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.memory import KVMemory
from salt.model_input import FlowModel
from salt.models.causal_model import BidirectionalModel, CausalModel
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import NoiseSource, SeededNoise
from salt.rollout import RolloutSettings, Step, rollout
from salt.sampling import sample_bidirectional
from salt.schedule import Schedule, Stepping
from train.config.recipe import Recipe


@contextmanager
def autocast_cache(enabled: bool) -> Iterator[None]:
    """Within: whether autocast reuses a weight that it has cast. The cache is dropped when the outermost autocast ends.

    A cast computed without gradient, reused in a forward with gradient, would cut the weight's gradient.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(enabled)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def rollout_settings(
    recipe: Recipe, schedule: Schedule, stepping: Stepping | tuple[Stepping, ...] | None = None
) -> RolloutSettings:
    """The engine's settings for a recipe's blocks. stepping: in place of the recipe's."""
    r = recipe.rollout
    return RolloutSettings(schedule, stepping or r.stepping, r.frames_per_block, r.independent_first_frame)


def flow_model(student: SaltTransformer3DModel, recipe: Recipe) -> FlowModel[Conditioning]:
    """The student as the engine calls it: causal, or with the whole clip at once."""
    return BidirectionalModel(student) if recipe.rollout.kind == "bidirectional" else CausalModel(student)


def clip_noise(
    student: SaltTransformer3DModel,
    recipe: Recipe,
    seeds: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> SeededNoise:
    """Noise of one clip per seed, at the recipe's size."""
    r = recipe.rollout
    return SeededNoise(seeds, len(seeds), student.config.out_channels, r.height, r.width, device, dtype)


def new_memory(student: SaltTransformer3DModel, conditioning: Conditioning, recipe: Recipe) -> KVMemory:
    """An empty memory for a clip of the recipe's length."""
    r = recipe.rollout
    geometry = student.memory_geometry(conditioning.text.shape[0], r.height, r.width)
    # The model computes in the precision's dtype, whatever dtype its weights have.
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else next(student.parameters()).dtype
    return KVMemory(recipe.policy, geometry, dtype, conditioning.text.device, r.frames)


@torch.no_grad()
@autocast_cache(True)
def run_rollout(
    model: FlowModel[Conditioning],
    student: SaltTransformer3DModel,
    conditioning: Conditioning,
    recipe: Recipe,
    settings: RolloutSettings,
    noise: NoiseSource,
    *,
    negative: Conditioning | None = None,
    first: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """A clip [B, C, F, H, W] of the recipe's length, kind and memory. model: the student, wrapped for the engine.

    first: [B, C, 1, H, W], the picture's latent that it begins with.
    """
    frames = recipe.rollout.frames
    if recipe.rollout.kind == "bidirectional":
        return sample_bidirectional(model, conditioning, noise, frames, settings, negative=negative, on_step=on_step)
    memory = new_memory(student, conditioning, recipe)
    return continue_rollout(
        model, conditioning, memory, noise, frames, recipe, settings, negative=negative, first=first, on_step=on_step
    )


def continue_rollout(
    model: FlowModel[Conditioning],
    conditioning: Conditioning,
    memory: KVMemory,
    noise: NoiseSource,
    frames: int,
    recipe: Recipe,
    settings: RolloutSettings,
    *,
    negative: Conditioning | None = None,
    first: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """The last `frames` latent frames [B, C, frames, H, W] of a clip, after those that `memory` holds.

    first: [B, C, 1, H, W], the first of them, where it is given: a block of its own, or part of the first block.
    """
    in_block = first if recipe.rollout.gives_first_frame else None
    before = None if in_block is not None else first
    clip = [] if before is None else [before]
    blocks = rollout(
        model, conditioning, memory, noise, frames - len(clip), settings,
        negative=negative, initial_latents=before, first_frame=in_block, on_step=on_step,
    )  # fmt: skip
    for block in blocks:
        clip.append(block.latents)
        if block.index + 1 == block.count:
            break  # nothing reads the memory that the last block's context pass would write
    return torch.cat(clip, dim=2)
