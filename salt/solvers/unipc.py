"""UniPC of order 2 on a schedule's own noise levels: diffusers' `UniPCMultistepScheduler`, with these set.

Deterministic: no noise is drawn. Source: UniPC (arXiv 2302.04867), variant bh2, predicting x0; as LongLive 2.0 samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedule import ModelCall


class UniPC:
    """Steps of one block. Each corrects the one before with the model's new flow, so a new block needs a new object."""

    def __init__(self, calls: Sequence[ModelCall]) -> None:
        from diffusers import UniPCMultistepScheduler  # takes over a second, and most students do not need it

        self.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        self.scheduler.set_timesteps(len(calls))
        self.scheduler.timesteps = torch.tensor([call.timestep for call in calls])
        self.scheduler.sigmas = torch.tensor([*(call.sigma for call in calls), 0.0])
        self.scheduler.set_begin_index(0)
        self.taken = 0

    def step(self, x: Tensor, flow: Tensor) -> Tensor:
        """The latents [B, C, F, H, W] at the next noise level; clean after the last call."""
        timestep = self.scheduler.timesteps[self.taken]
        self.taken += 1
        return self.scheduler.step(flow, timestep, x, return_dict=False)[0]
