"""Weights of clips in the DMD loss by their reward: exp(beta reward) (Re-DMD of Reward Forcing, arXiv 2512.04678)."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.models.streaming_vae import WanStreamDecoder
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.rewards import find_reward


class RewardWeight:
    """Rewards of student clips by the recipe's function, on decoded pixels; no gradient flows through it."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.reward, self.beta = find_reward(recipe.loss.reward), recipe.loss.reward_beta
        vae = AutoencoderKLWan.from_pretrained(recipe.models.vae, torch_dtype=torch.float32)
        nn.Module.to(vae, device)
        self.decoder = WanStreamDecoder(vae.requires_grad_(False))

    @torch.no_grad()
    def __call__(self, x0: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weights [B] of clips x0 [B, C, F, H, W], and their rewards [B]."""
        found: list[Tensor] = []
        with torch.autocast(x0.device.type, enabled=False):
            for clip, prompt in zip(x0.float().split(1), batch.prompts, strict=True):  # pixels are large
                found.append(self.reward(self.decoder.decode(clip), [prompt]))
                self.decoder.reset()  # the next clip begins anew, and the cache is gone before the scores run
        rewards = torch.cat(found).to(x0.device, torch.float64)
        return (self.beta * rewards).exp(), rewards
