"""Adversarial losses of a discriminator and of the student as its generator.

Relativistic, in pairs (arXiv 1807.00734; R3GAN, arXiv 2501.05441): only the difference between the logits of a real and
a generated clip counts, so dropping modes gains nothing. Logits are [B, F], one per latent frame; weight_F [F] sums
to 1.
"""

from __future__ import annotations

from torch import Tensor, softmax
from torch.nn.functional import softplus


def discriminator_loss(real_BF: Tensor, fake_BF: Tensor, weight_F: Tensor) -> Tensor:
    """softplus(fake - real), summed over frames by weight, mean over pairs; ln 2 for equal logits."""
    return (softplus(fake_BF - real_BF) * weight_F).sum(1).mean()


def generator_adversarial_loss(real_BF: Tensor, fake_BF: Tensor, weight_F: Tensor, temperature: float) -> Tensor:
    """softplus(real - fake), summed over frames by weight; gradient flows to `fake_BF`.

    Clips are weighted by n softmax(gap / temperature), gap the logits' distance below their real pair: where the
    discriminator detects all clips, softplus alone would weight them alike.
    """
    gap_B = ((real_BF - fake_BF).detach() * weight_F).sum(1)
    weight_B = softmax(gap_B / temperature, 0) * len(gap_B)
    return (softplus(real_BF - fake_BF) * weight_F).sum(1).mul(weight_B).mean()


def gradient_penalty(logits_BF: Tensor, perturbed_BF: Tensor, spread: float, weight_F: Tensor) -> Tensor:
    """((D(x + spread n) - D(x)) / spread)^2: the gradient penalties R1 and R2 without second derivatives.

    Source: APT's approximated R1 (arXiv 2501.08316). perturbed_BF: logits of the same clips with normal noise of
    standard deviation `spread` added.
    """
    return (((perturbed_BF - logits_BF) / spread).square() * weight_F).sum(1).mean()
