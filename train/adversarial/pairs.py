"""Losses of the discriminator and of the student on pairs of a real and a generated clip with the same caption.

Both clips of a pair are noised to one level, with noise of their own. Latents are [B, C, F, H, W], logits [B, F].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from salt.schedule import add_noise
from train.losses import discriminator_loss, generator_adversarial_loss, gradient_penalty

MAX_SIGMA = 0.6  # of the discriminator's input: outlines are still visible
PENALTY_WEIGHT = 0.01
PENALTY_SPREAD = 0.05  # of the noise that the gradient penalty adds
WEIGHT_TEMPERATURE = 4.0  # of logits: clips count more, the more clearly they are detected

# Logits [B, F] of noised clips at sigma [B] with text [B, L, D].
LogitFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NoisyPairs:
    """Noised real and fake clips [B, C, F, H, W], their noise level sigma [B] and text [B, L, D]."""

    real: Tensor
    fake: Tensor
    sigma: Tensor
    text: Tensor

    @staticmethod
    def of(real: Tensor, fake: Tensor, sigma: Tensor, text: Tensor, noises: tuple[Tensor, Tensor]) -> NoisyPairs:
        """noises: of the real clips and of the fake ones."""
        return NoisyPairs(add_noise(real, noises[0], sigma), add_noise(fake, noises[1], sigma), sigma, text)


def discriminator_terms(
    logits: LogitFunction, pairs: NoisyPairs, weight_F: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """The discriminator's loss, and its weighted gradient penalty.

    spread [2 P, C, F, H, W]: standard normal noise of the penalty, for the first P real and the first P fake clips.
    """
    half = slice(len(spread) // 2)
    perturbed = torch.cat([pairs.real[half], pairs.fake[half]]) + PENALTY_SPREAD * spread
    clips = torch.cat([pairs.real, pairs.fake, perturbed])
    sigma, text = (torch.cat([v, v, v[half], v[half]]) for v in (pairs.sigma, pairs.text))
    count = len(pairs.real)
    real_BF, fake_BF, perturbed_BF = logits(clips, sigma, text).split([count, count, len(spread)])
    loss = discriminator_loss(real_BF, fake_BF, weight_F)
    logits_BF = torch.cat([real_BF[half], fake_BF[half]])
    # Twice: the mean is over real and fake clips, each of which has a penalty of its own (R1 and R2).
    return loss, 2 * PENALTY_WEIGHT * gradient_penalty(logits_BF, perturbed_BF, PENALTY_SPREAD, weight_F)


def adversarial_term(logits: LogitFunction, pairs: NoisyPairs, weight_F: Tensor) -> Tensor:
    """The student's adversarial loss, with gradient in the fake clips."""
    with torch.no_grad():
        real_BF = logits(pairs.real, pairs.sigma, pairs.text)
    fake_BF = logits(pairs.fake, pairs.sigma, pairs.text)
    return generator_adversarial_loss(real_BF, fake_BF, weight_F, WEIGHT_TEMPERATURE)


def clip_gradient(
    fake: Tensor, adversarial: Tensor, dmd: Tensor, ratio: float, scored_F: Tensor | None = None
) -> Tensor:
    """Gradient of both losses in the clips `fake` [B, C, F, H, W]: DMD's, and the adversarial one, `ratio` as long.

    scored_F [F]: frames that take DMD's gradient, all by default. Only the direction of the adversarial loss counts, so
    weights need no gradient.
    """
    (from_adversarial,) = torch.autograd.grad(adversarial, fake)
    (from_dmd,) = torch.autograd.grad(dmd, fake)
    scale = ratio * from_dmd.norm() / from_adversarial.norm().clamp_min(1e-12)
    return scale * from_adversarial + (from_dmd if scored_F is None else from_dmd * scored_F[:, None, None])
