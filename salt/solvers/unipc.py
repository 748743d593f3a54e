"""UniPC of order 2 on a schedule's own noise levels, as diffusers' `UniPCMultistepScheduler` computes it.

Every step is a weighted sum of a block's first latents and the model's predictions of x0 so far, and the weights follow
from the noise levels alone. diffusers' class finds them in main memory, once for a schedule; its own arithmetic on a
GPU would wait for the device, from the third step on to solve two equations there.
Deterministic: no noise is drawn. Source: UniPC (arXiv 2302.04867), variant bh2, predicting x0; as LongLive 2.0 samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..schedule import ModelCall, flow_to_x0

BELOW_NOISE = 1 - 1e-6  # the highest noise level: the logarithm of 1 - sigma is taken, as in diffusers' own schedules


class UniPC:
    """Steps of one block. Each corrects the one before with the model's new flow, so a new block needs a new object."""

    def __init__(self, calls: Sequence[ModelCall]) -> None:
        self.sigmas = tuple(call.sigma for call in calls)
        self.terms: list[Tensor] = []

    def step(self, x: Tensor, flow: Tensor) -> Tensor:
        """The latents [B, C, F, H, W] at the next noise level; clean after the last call."""
        taken = max(len(self.terms) - 1, 0)
        predicted = flow_to_x0(x, flow, self.sigmas[taken])
        self.terms = [*(self.terms or [x]), predicted]
        following = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for term, weight in zip(self.terms, step_weights(self.sigmas)[taken], strict=True):
            if weight:
                following = torch.add(following, term, alpha=weight)
        return following.to(x.dtype)


@lru_cache(maxsize=64)
def step_weights(sigmas: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """For every step the weights of the first latents and of each prediction up to it. sigmas: of a block's calls."""
    from diffusers import UniPCMultistepScheduler  # takes over a second, and most students do not need it

    scheduler = UniPCMultistepScheduler(prediction_type="sample", use_flow_sigmas=True)
    scheduler.set_timesteps(len(sigmas))
    scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64).clamp(max=BELOW_NOISE)
    scheduler.set_begin_index(0)
    first, *predictions = torch.eye(len(sigmas) + 1, dtype=torch.float64)[:, None]  # what sums consist of
    weights, x = [], first
    for taken, (timestep, prediction) in enumerate(zip(scheduler.timesteps, predictions, strict=True)):
        x = scheduler.step(prediction, timestep, x, return_dict=False)[0]
        weights.append(tuple(x[0, : taken + 2].tolist()))
    return tuple(weights)
