"""Exponential moving average of weights, in float32, sharded as the weights are.

Not diffusers' EMAModel: it warms the decay up from 0 ((1 + n) / (10 + n)), keeps an unnamed list in the weights' own
dtype, and rounds otherwise than `lerp`, so neither recipes' `optimisation.ema` nor a resumed run would give the same
weights to the bit; and its list cannot be matched with an FSDP model's full state on another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(average: dict[str, Tensor], weights: Iterable[tuple[str, Tensor]], decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights, in place and by name; a new name gets a float32 copy."""
    for name, value in weights:
        if name in average:
            average[name].lerp_(value.detach().float(), 1 - decay)
        else:
            average[name] = value.detach().float().clone()


class Ema:
    """The average of a model's trainable weights; begins with the first `update`."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {}

    def update(self) -> None:
        """Average the current weights in; the first call copies them."""
        trainable = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        update_average(self.average, trainable, self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within: the model has the averaged weights (where there are any yet)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.model.named_parameters():
            if name in self.average:
                current = p.detach().clone()
                p.copy_(self.average[name])
                self.average[name] = current.float()
