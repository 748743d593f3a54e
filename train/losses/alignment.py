"""Cache-conditioned feature alignment: distances between features of few-step clips and of denser references.

Source: Salt (arXiv 2604.03118, section 3.3). Features are hidden states of the teacher, [B, F * tokens, D].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu


def token_relation_distance(student: Tensor, reference: Tensor, frames: int, margin: float = 0.1) -> Tensor:
    """TRD, spatial: per frame, cosine Gram matrices of the tokens; mean relu(|G_student - G_reference| - margin).

    student, reference: [B, frames * tokens, D]. No gradient reaches the reference.
    """
    if student.shape != reference.shape or student.shape[1] % frames:
        raise ValueError(
            f"alignment: found features {tuple(student.shape)} and {tuple(reference.shape)}, expected equal shapes "
            f"[B, S, D] with S a multiple of {frames} frames"
        )
    return relu((_gram(student, frames) - _gram(reference.detach(), frames)).abs() - margin).mean()


def _gram(features: Tensor, frames: int) -> Tensor:
    tokens = normalize(features.float().unflatten(1, (frames, -1)), dim=-1)  # [B, F, T, D]
    return tokens @ tokens.transpose(-1, -2)


def linear_mmd(student: Tensor, reference: Tensor) -> Tensor:
    """Linear MMD: distance of the token means, per channel, softened near zero.

    mean over batch and channels of max(sqrt((mean(reference) - mean(student))^2 + 0.001^2), 1e-5) - 0.001.
    """
    gap = reference.detach().float().mean(dim=1) - student.float().mean(dim=1)
    softness = 1e-3
    return ((gap.square() + softness**2).sqrt().clamp_min(1e-5) - softness).mean()


def rbf_mmd(student: Tensor, reference: Tensor, bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Tensor:
    """Squared MMD between the token sets of each sample under a sum of RBF kernels (biased estimate), batch mean.

    k(x, y) = sum_b exp(-|x - y|^2 / (2 b s)), s the mean squared distance between the two sets, detached.
    """
    x, y = student.float(), reference.detach().float()
    across = torch.cdist(x, y).square()
    scale = across.detach().mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)

    def kernel(squared: Tensor) -> Tensor:
        return sum((torch.exp(-squared / (2 * b * scale)) for b in bandwidths), torch.zeros_like(squared))

    def within(z: Tensor) -> Tensor:
        return kernel(torch.cdist(z, z).square()).mean(dim=(1, 2))

    return (within(x) + within(y) - 2 * kernel(across).mean(dim=(1, 2))).mean()
