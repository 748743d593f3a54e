"""Whole-clip forwards under the block-causal mask, which compute what a rollout would compute block by block.

Used where no rollout is needed: teacher forcing, regression on trajectories, and the causal scores of Salt++.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from salt.block_plan import RolloutSettings, block_lengths
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.attention import AttentionContext, BlockCausal
from salt.schedule import NUM_TRAIN_TIMESTEPS
from train.config.recipe import Rollouts


class ClipModel(Protocol):
    """A transformer on whole clips: flow [B, C, F, H, W] of x at timesteps [B] or [B, F].

    `SaltTransformer3DModel`, or a wrapper of one (offloaded, compiled).
    """

    def __call__(
        self, x: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None, /, *,
        return_dict: Literal[False], attention_context: AttentionContext | None = None,
    ) -> tuple[Tensor, ...]: ...  # fmt: skip

    def block_causal(
        self, blocks: Sequence[int], height: int, width: int, *, clean_context: bool, policy: MemoryPolicy
    ) -> BlockCausal: ...


class FeatureModel(ClipModel, Protocol):
    """A `ClipModel` that also returns its tokens [B, S, dim] after a transformer block (0-based)."""

    def features(
        self, x: Tensor, timestep: Tensor, text: Tensor, after_block: int, /, *,
        encoder_hidden_states_image: Tensor | None = None, attention_context: AttentionContext | None = None,
    ) -> Tensor: ...  # fmt: skip


def clip_blocks(rollout: Rollouts, frames: int) -> list[int]:
    """Latent frames per block of a clip, or of a window of one, of `frames` latent frames."""
    n = rollout.frames_per_block
    lead = rollout.independent_first_frame and frames % n != 0
    return block_lengths(0, frames, RolloutSettings(frames_per_block=n, independent_first_frame=lead))


def add_channels(x: Tensor, conditioning: Conditioning) -> Tensor:
    """Latents with the condition's channels (I2V) beside them, where there are any."""
    if conditioning.channels is None:
        return x
    return torch.cat([x, conditioning.channels[:, :, : x.shape[2]]], dim=1)


def causal_flow(
    model: ClipModel, x: Tensor, sigma_BF: Tensor, conditioning: Conditioning, blocks: Sequence[int],
    policy: MemoryPolicy, clean: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Flow [B, C, F, H, W] of x [B, C, F, H, W] at sigma [B, F]; each block sees itself and the blocks before it.

    clean: [B, C, F, H, W], the past that blocks see (teacher forcing: what a rollout with perfect memory computes);
    None: they see the noisy blocks before them, each at its own sigma (CausVid, Self Forcing's ODE stage).
    """
    frames = x.shape[2]
    x, t_BF, mask = _causal_inputs(model, x, sigma_BF, conditioning, blocks, policy, clean)
    flow = model(x, t_BF, conditioning.text, conditioning.image, return_dict=False, attention_context=mask)[0]
    return flow[:, :, -frames:]


def causal_features(
    model: FeatureModel, x: Tensor, sigma_BF: Tensor, conditioning: Conditioning, blocks: Sequence[int],
    policy: MemoryPolicy, clean: Tensor, after_block: int,
) -> Tensor:  # fmt: skip
    """Tokens [B, S, dim] of x after a transformer block (0-based), each block of x seeing `clean` blocks before it."""
    x, t_BF, mask = _causal_inputs(model, x, sigma_BF, conditioning, blocks, policy, clean)
    image = conditioning.image
    tokens = model.features(
        x, t_BF, conditioning.text, after_block, encoder_hidden_states_image=image, attention_context=mask
    )
    return tokens[:, tokens.shape[1] // 2 :]


def _causal_inputs(
    model: ClipModel, x: Tensor, sigma_BF: Tensor, conditioning: Conditioning, blocks: Sequence[int],
    policy: MemoryPolicy, clean: Tensor | None,
) -> tuple[Tensor, Tensor, BlockCausal]:  # fmt: skip
    """Input, timesteps and mask of one forward on x alone, or on [clean | x]."""
    height, width = x.shape[3:]
    x = add_channels(x, conditioning)
    t_BF = NUM_TRAIN_TIMESTEPS * sigma_BF
    if clean is not None:
        x = torch.cat([add_channels(clean, conditioning), x], dim=2)
        t_BF = torch.cat([torch.zeros_like(t_BF), t_BF], dim=1)
    mask = model.block_causal(blocks, height, width, clean_context=clean is not None, policy=policy)
    return x, t_BF, mask
