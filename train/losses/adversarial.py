"""Adversarial losses: a judge tells real clips from the student's, and the student learns what it sees.

Relativistic, in pairs (arXiv 1807.00734; R3GAN, arXiv 2501.05441): only the difference between a real clip's logit and
a made one's counts, so nothing is gained by leaving a kind of clip out. Logits are [B, F], one per latent frame.
"""

from __future__ import annotations

from torch import Tensor, softmax
from torch.nn.functional import softplus


def judge_loss(real_BF: Tensor, made_BF: Tensor, weight_F: Tensor) -> Tensor:
    """softplus(made - real) over pairs, the mean over clips of the frames' weighted sum; ln 2 where it sees nothing."""
    return (softplus(made_BF - real_BF) * weight_F).sum(1).mean()


def fooling_loss(real_BF: Tensor, made_BF: Tensor, weight_F: Tensor, temperature: float) -> Tensor:
    """The same with the parts exchanged: the student's, with gradient in `made_BF`.

    Clips count by a softmax of how far below their pair they are, in units of `temperature`, n clips n in all. Where
    the judge sees through all of them, their gradients are alike, and this tells them apart.
    """
    gap_B = ((real_BF - made_BF).detach() * weight_F).sum(1)
    count_B = softmax(gap_B / temperature, 0) * len(gap_B)
    return (softplus(real_BF - made_BF) * weight_F).sum(1).mul(count_B).mean()


def smoothness_loss(logits_BF: Tensor, nudged_BF: Tensor, spread: float, weight_F: Tensor) -> Tensor:
    """((D(x + spread n) - D(x)) / spread)^2: the slope penalties R1 and R2 without second derivatives.

    Source: APT's approximated R1 (arXiv 2501.08316). nudged_BF: logits of the same clips with normal noise of standard
    deviation `spread` added.
    """
    return (((nudged_BF - logits_BF) / spread).square() * weight_F).sum(1).mean()
