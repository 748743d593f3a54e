"""The guard that ends a run whose losses or gradient norm are not finite, or whose gradient norm jumps."""

from __future__ import annotations

import math
import statistics
from collections import deque

NORM_HISTORY = 50
MIN_NORM_HISTORY = 10


class Diverged(RuntimeError):
    """A run was stopped because it diverged; the message names the value, the update and the last checkpoint."""


class DivergenceGuard:
    """Stops a run on NaN, infinity, or a gradient norm above `factor` times its median over the last updates."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: deque[float] = deque(maxlen=NORM_HISTORY)

    def check(self, update: int, values: dict[str, float]) -> None:
        """Raise Diverged if a value is not finite, or if `norm` (the generator's gradient norm) jumps."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"update {update}: {name} is {value}")
        if "norm" not in values:
            return
        if len(self.norms) >= MIN_NORM_HISTORY and values["norm"] > self.factor * statistics.median(self.norms):
            raise Diverged(
                f"update {update}: gradient norm {values['norm']:.3g} is over {self.factor:g} times its median "
                f"{statistics.median(self.norms):.3g}"
            )
        self.norms.append(values["norm"])
