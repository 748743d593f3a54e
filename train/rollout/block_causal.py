"""One forward over a whole clip that computes what a rollout would: a model's flow under the block-causal mask.

Used where no rollout is needed: teacher forcing, regression on trajectories, and the causal scores of Salt++.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.rollout import RolloutSettings, block_lengths
from salt.schedule import NUM_TRAIN_TIMESTEPS
from train.config.recipe import Rollouts


def blocks_of(rollout: Rollouts, frames: int) -> list[int]:
    """Latent frames per block of a clip, or of a window of one, of `frames` latent frames."""
    n = rollout.frames_per_block
    lead = rollout.independent_first_frame and frames % n != 0
    return block_lengths(0, frames, RolloutSettings(frames_per_block=n, independent_first_frame=lead))


def causal_flow(
    model: Any,
    x: Tensor,
    sigma_BF: Tensor,
    conditioning: Conditioning,
    blocks: Sequence[int],
    policy: MemoryPolicy,
    clean: Tensor | None = None,
) -> Tensor:
    """Flow [B, C, F, H, W] of x [B, C, F, H, W] at sigma [B, F], each block seeing itself and what is before it.

    clean: [B, C, F, H, W], the past that a block sees (teacher forcing: what a rollout with perfect memory computes);
    None: it sees the noisy blocks before it, each at its own sigma (CausVid, Self Forcing's ODE stage).
    Channels of the condition (I2V) cover the clip.
    """
    frames = x.shape[2]
    x, t_BF, scope = _laid_out(model, x, sigma_BF, conditioning, blocks, policy, clean)
    flow = model(x, t_BF, conditioning.text, conditioning.image, return_dict=False, scope=scope)[0]
    return flow[:, :, -frames:]


def causal_features(
    model: Any,
    x: Tensor,
    sigma_BF: Tensor,
    conditioning: Conditioning,
    blocks: Sequence[int],
    policy: MemoryPolicy,
    clean: Tensor,
    after_block: int,
) -> Tensor:
    """Tokens [B, S, dim] of x after a transformer block (0-based), as `causal_flow` computes them past `clean`."""
    x, t_BF, scope = _laid_out(model, x, sigma_BF, conditioning, blocks, policy, clean)
    image = conditioning.image
    tokens = model.features(x, t_BF, conditioning.text, after_block, encoder_hidden_states_image=image, scope=scope)
    return tokens[:, tokens.shape[1] // 2 :]


def _laid_out(
    model: Any, x: Tensor, sigma_BF: Tensor, conditioning: Conditioning, blocks: Sequence[int], policy: MemoryPolicy,
    clean: Tensor | None,
) -> tuple[Tensor, Tensor, Any]:  # fmt: skip
    """Input, timesteps and scope of one forward: x alone, or [clean | x]."""
    frames, height, width = x.shape[2:]
    if conditioning.channels is not None:
        channels = conditioning.channels[:, :, :frames]
        x = torch.cat([x, channels], dim=1)
        clean = None if clean is None else torch.cat([clean, channels], dim=1)
    t_BF = NUM_TRAIN_TIMESTEPS * sigma_BF
    if clean is not None:
        x, t_BF = torch.cat([clean, x], dim=2), torch.cat([torch.zeros_like(t_BF), t_BF], dim=1)
    scope = model.block_causal(blocks, height, width, clean_context=clean is not None, policy=policy)
    return x, t_BF, scope
