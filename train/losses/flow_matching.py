"""Flow matching (rectified flow): regression on the velocity eps - x0 of x_t = (1 - sigma) x0 + sigma eps."""

from __future__ import annotations

import torch
from torch import Tensor

from salt.schedule import NUM_TRAIN_TIMESTEPS, warp


def flow_matching_error(flow: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """(v - (eps - x0))^2, of the tensors' shape, for a loss that weights its entries."""
    return (flow - (noise - x0)).square()


def flow_matching_loss(flow: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """mean((v - (eps - x0))^2)."""
    return flow_matching_error(flow, x0, noise).mean()


def bell_weight(sigma: Tensor, shift: float) -> Tensor:
    """Weights of the noise levels `sigma` (any shape), exp(-2 (t/1000 - 1/2)^2) less its smallest value.

    Their mean is 1 over the 1000 shifted timesteps; pure noise has 0. Source: the training weights of Self Forcing's
    and Causal Forcing's schedule.
    """

    def bell(t: Tensor) -> Tensor:
        return torch.exp(-2 * (t / NUM_TRAIN_TIMESTEPS - 0.5) ** 2)

    steps = torch.arange(NUM_TRAIN_TIMESTEPS, 0, -1, dtype=torch.float64)
    table = bell(NUM_TRAIN_TIMESTEPS * warp(steps, shift))
    weight = (bell(NUM_TRAIN_TIMESTEPS * sigma) - table.min()) / (table - table.min()).mean()
    return weight.to(sigma.dtype).clamp_min(0)
