"""The guard that ends a run whose losses or gradient norms are not finite, or one of whose gradient norms jumps."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

NORM_HISTORY = 50
MIN_NORM_HISTORY = 10
NORMS = {"norm": "gradient norm", "critic_norm": "the critic's gradient norm"}  # logged names: in words


class Diverged(RuntimeError):
    """A run was stopped because it diverged; the message names the value, the update and the last checkpoint."""


class DivergenceGuard:
    """Stops a run on NaN, infinity, or a gradient norm above `factor` times its median over the last updates.

    The norms are the student's and the critic's, each against its own history.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: dict[str, deque[float]] = {name: deque(maxlen=NORM_HISTORY) for name in NORMS}

    def check(self, update: int, values: dict[str, float]) -> None:
        """Raise Diverged if a value is not finite, or if one of the gradient norms among them jumps."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"update {update}: {name} is {value}")
        for name, history in self.norms.items():
            if name not in values:
                continue
            median = statistics.median(history) if len(history) >= MIN_NORM_HISTORY else math.inf
            if values[name] > self.factor * median:
                raise Diverged(
                    f"update {update}: {NORMS[name]} {values[name]:.3g} is over {self.factor:g} times its median "
                    f"{median:.3g}"
                )
            history.append(values[name])

    def state(self) -> dict[str, list[float]]:
        """The norms so far, for a checkpoint."""
        return {name: list(history) for name, history in self.norms.items()}

    def load(self, norms: Mapping[str, Sequence[float]]) -> None:
        """Go on from the norms of a checkpoint."""
        for name, history in norms.items():
            self.norms[name].extend(history)
