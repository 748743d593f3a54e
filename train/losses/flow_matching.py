"""Flow matching (rectified flow): regression on the velocity eps - x0 of x_t = (1 - sigma) x0 + sigma eps."""

from __future__ import annotations

from torch import Tensor


def flow_matching_error(flow: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """(v - (eps - x0))^2, of the tensors' shape, for a loss that weights its entries."""
    return (flow - (noise - x0)).square()


def flow_matching_loss(flow: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """mean((v - (eps - x0))^2)."""
    return flow_matching_error(flow, x0, noise).mean()
