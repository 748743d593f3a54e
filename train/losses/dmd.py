"""Distribution matching distillation (DMD): the generator's gradient and loss.

Sources: DMD2 (arXiv 2405.14867) as Self Forcing and Salt (arXiv 2604.03118, section 3.1) use it on whole clips.
Latents are [B, C, F, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def guided_x0(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """The teacher's estimate with guidance g: cond + g (cond - uncond) (Salt's convention; g = 0 is no guidance)."""
    return conditional + guidance * (conditional - unconditional)


def dmd_gradient(x0: Tensor, real_x0: Tensor, fake_x0: Tensor, blocks: Sequence[int] = ()) -> Tensor:
    """grad = (fake - real) / mean|x0 - real|, the mean per sample over all other axes; NaN becomes 0.

    x0: the student's clip; real_x0, fake_x0: the teacher's and the critic's estimates from the same noised clip.
    blocks: latent frames of its blocks, each of which is divided by its own mean (LongLive 2.0).
    """
    distance, axes = (x0 - real_x0).abs(), tuple(range(1, x0.ndim))
    scale = distance.mean(dim=axes, keepdim=True)
    if blocks:
        parts = distance.split(list(blocks), dim=2)
        scale = torch.cat([p.mean(dim=axes, keepdim=True).expand(-1, -1, p.shape[2], -1, -1) for p in parts], dim=2)
    return ((fake_x0 - real_x0) / scale).detach().nan_to_num()


def dmd_loss(x0: Tensor, gradient: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """0.5 mse(x0, stopgrad(x0 - gradient)) in float64: its derivative with respect to x0 is gradient / numel.

    weight_B: of every clip's part of the mean (Re-DMD, arXiv 2512.04678), 1 by default.
    """
    x0_64 = x0.double()
    target = (x0_64 - gradient.double()).detach()
    if weight_B is None:
        return 0.5 * mse_loss(x0_64, target)
    return 0.5 * (weight_B * (x0_64 - target).square().flatten(1).mean(dim=1)).mean()
