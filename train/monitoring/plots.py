"""Plots of a run's metrics, one panel per metric."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import ModuleType

from salt.io.atomic import atomic_write

COLUMNS = 4


def pyplot_for_files() -> ModuleType:
    """matplotlib's pyplot with a backend that needs no display (imported here, because it is slow)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_curve(curve: Path, out: Path, title: str) -> None:
    """Draw a csv of rows (step, name, value) into a PNG, panels in order of first appearance; no rows, no PNG."""
    series: dict[str, list[tuple[int, float]]] = {}
    with curve.open() as file:
        for row in csv.DictReader(file):
            series.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
    if not series:
        return
    pyplot = pyplot_for_files()
    columns = min(COLUMNS, len(series))
    rows = math.ceil(len(series) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(series) :]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, series.items(), strict=False):
        axis.plot(*zip(*sorted(points), strict=True), linewidth=1.2)
        axis.set_xlabel("step")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    with atomic_write(out) as partial:  # it is drawn again and again while somebody looks at it
        figure.savefig(partial, dpi=80, format="png")
    pyplot.close(figure)
