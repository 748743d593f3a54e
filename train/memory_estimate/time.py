"""Time of an update, estimated from its operations and a card's peak: what each phase computes, at an assumed share.

Communication between processes, which overlaps with it, text encoder and autoencoder are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from salt.errors import InputError
from train.config.recipe import Recipe
from train.memory_estimate.estimate import configurations
from train.monitoring.throughput import PEAK_TFLOPS
from train.monitoring.update_flops import Phases, UpdateFlops

CARD, SHARE = "H100", 0.4  # by default; the share is an assumption, no training has been timed


@dataclass
class Transformer:
    """A configuration as operations depend on it, with diffusers' defaults."""

    num_attention_heads: int
    num_layers: int
    ffn_dim: int
    in_channels: int
    out_channels: int
    attention_head_dim: int = 128
    patch_size: tuple[int, int, int] = (1, 2, 2)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Transformer:
        return cls(**{name: config[name] for name in cls.__annotations__ if name in config})


@dataclass(frozen=True)
class Card:
    """A GPU whose peak is known, and the share of its dense bfloat16 peak that an update is assumed to reach."""

    name: str = CARD
    share: float = SHARE

    def __post_init__(self) -> None:
        if self.name not in PEAK_TFLOPS:
            raise InputError("card", f"found {self.name!r}, expected one of {', '.join(PEAK_TFLOPS)}")
        if not 0 < self.share <= 1:
            raise InputError("share", f"found {self.share:g}, expected above 0 to 1")

    @property
    def flops(self) -> float:
        """Operations per second."""
        return 1e12 * PEAK_TFLOPS[self.name] * self.share

    def __str__(self) -> str:
        return f"{self.share:.0%} of the {PEAK_TFLOPS[self.name]} TFLOP/s of one {self.name}"


def update_phases(recipe: Recipe) -> Phases:
    """Mean operations of an update in all processes, by phase. Raises RecipeError for models of unknown size."""
    configs = {name: Transformer.of(config) for name, config in configurations(recipe).items()}
    return UpdateFlops(recipe, configs).expected()


def update_seconds(recipe: Recipe, processes: int, card: Card) -> float | None:
    """Seconds of an update on so many cards; None in float32, whose peaks are not known here."""
    if recipe.optimisation.precision != "bf16":
        return None
    return sum(work.total for work in update_phases(recipe).values()) / processes / card.flops
