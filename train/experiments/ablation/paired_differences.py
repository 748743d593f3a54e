"""Differences between arms, paired by training seed: the mean, and an error clustered over the seeds.

Clips of one student are no independent trials, so the seeds are what is counted: a difference is taken within every
seed, on the same noise and prompts, and its error is that of the mean over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Difference:
    """mean: over seeds. error: its standard error, NaN for a single seed. p: two-sided, by Student's t.

    p is NaN where the seeds do not differ: equal counts of few clips do not say that the error is 0.
    """

    mean: float
    error: float
    p: float

    def text(self, digits: int) -> str:
        """`+3.0 ± 1.2`, of a single seed `+3.0`; with a star where p < 0.05."""
        error = "" if math.isnan(self.error) else f" ± {self.error:.{digits}f}"
        return f"{self.mean:+.{digits}f}{error}{' *' if self.p < 0.05 else ''}"


def over_seeds(values: Sequence[float]) -> Difference:
    """The mean of one difference per seed."""
    mean = fmean(values)
    if len(values) < 2:
        return Difference(mean, math.nan, math.nan)
    error = stdev(values) / math.sqrt(len(values))
    return Difference(mean, error, two_sided_p(mean / error, len(values) - 1) if error > 1e-9 else math.nan)


def two_sided_p(t: float, freedom: int, pieces: int = 2000) -> float:
    """P(|T| > |t|) of Student's t. With t = sqrt(freedom) tan(a), the density of a is cos(a)^(freedom - 1)."""

    def integral(low: float, high: float) -> float:
        width = (high - low) / pieces
        return width * sum(math.cos(low + (i + 0.5) * width) ** (freedom - 1) for i in range(pieces))

    return integral(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2) / integral(0, math.pi / 2)


def verdict(found: Sequence[tuple[str, Difference]]) -> str:
    """Sentences: how many comparisons there are, how many have a star, and which pass Bonferroni's correction.

    Those without a p are counted among the comparisons.
    """
    if not found:
        return "No comparison yet."
    count = len(found)
    passing = ", ".join(what for what, difference in found if difference.p < 0.05 / count) or "none"
    return (
        f"{count} comparisons. \\* p < 0.05: {sum(d.p < 0.05 for _, d in found)}, where chance alone gives "
        f"{0.05 * count:.1f}. After Bonferroni's correction (p < {0.05 / count:.4f}): {passing}."
    )
