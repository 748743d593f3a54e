"""Consistency distillation: neighbouring points of a teacher's ODE have the same end.

The student's end from x_t is f(x_t, sigma) = x_t - sigma v, so that f(x, 0) = x whatever the weights are: the boundary
condition. Sources: Consistency Models (arXiv 2303.01469), Causal Forcing++ (arXiv 2605.15141).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss


def consistency_loss(end: Tensor, target: Tensor) -> Tensor:
    """mean((end - stopgrad(target))^2), in float32: ends from x_t and, by an averaged student, from the next point."""
    return mse_loss(end.float(), target.detach().float())
