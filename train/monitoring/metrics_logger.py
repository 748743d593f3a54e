"""What people watch while a run goes: progress, losses.csv, a plot, trackers, and a guard that stops a bad run."""

from __future__ import annotations

import csv
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.config.recipe import Recipe
from train.monitoring.plots import plot_curve

NORMS_REMEMBERED = 50
NORMS_NEEDED = 10


class Diverged(RuntimeError):
    """The run was stopped because its numbers went bad; the message says which, when, and what was kept."""


class DivergenceGuard:
    """Stops on NaN, infinity, or a gradient norm far above its running median."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: deque[float] = deque(maxlen=NORMS_REMEMBERED)

    def check(self, update: int, values: dict[str, float]) -> None:
        """Raise Diverged. `norm` among the values is the generator's gradient norm."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"update {update}: {name} is {value}")
        if "norm" not in values:
            return
        if len(self.norms) >= NORMS_NEEDED and values["norm"] > self.factor * statistics.median(self.norms):
            raise Diverged(
                f"update {update}: gradient norm {values['norm']:.3g} is over {self.factor:g} times its median "
                f"{statistics.median(self.norms):.3g}"
            )
        self.norms.append(values["norm"])


class MetricsLogger:
    """Losses to the progress bar, losses.csv and the tracker; only the main process writes."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, done: int) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.folder = Path(recipe.run.out)
        self.csv = self.folder / "losses.csv"
        if accelerator.is_main_process:
            self._forget_after(done)
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
        )
        self.progress = Progress(*columns, disable=not accelerator.is_main_process)
        self.task = self.progress.add_task(recipe.name, total=recipe.optimisation.updates, completed=done, losses="")
        if recipe.run.tracker != "none":
            accelerator.init_trackers(recipe.name, config=_flat(recipe.to_dict()))

    def __enter__(self) -> MetricsLogger:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        # Not accelerate's end_training, which parts the processes too: the export still needs all of them.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process and self.csv.exists():
            plot_curve(self.csv, self.folder / "losses.png", self.recipe.name)

    def update(self, update: int, values: dict[str, float]) -> None:
        """`update` counts finished generator updates."""
        text = " ".join(f"{k} {v:.3g}" for k, v in values.items())
        self.progress.update(self.task, completed=update, losses=text)
        if self.recipe.run.tracker != "none":
            self.accelerator.log(values, step=update)
        if not self.accelerator.is_main_process:
            return
        fresh = not self.csv.exists()
        with self.csv.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", "name", "value"])
            writer.writerows([update, name, f"{value:.9g}"] for name, value in values.items())

    def _forget_after(self, done: int) -> None:
        """Rows that a killed run wrote after its last checkpoint are written again by this one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.csv.exists():
            return
        lines = self.csv.read_text().splitlines()
        kept = [line for line in lines[1:] if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= done]
        self.csv.write_text("\n".join([*lines[:1], *kept]) + "\n")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as flat `section.key` strings and numbers, which is what trackers take."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
