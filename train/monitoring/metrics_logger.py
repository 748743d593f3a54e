"""Metrics of a training run: progress bar, losses.csv, its plot at the end, and a tracker (TensorBoard, wandb)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.config.recipe import Recipe
from train.monitoring.plots import plot_curve


class MetricsLogger:
    """Writes losses to the progress bar, losses.csv and the tracker, in the main process only.

    done: finished updates of a resumed run; later rows of losses.csv are dropped.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, done: int) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.folder = Path(recipe.run.out)
        self.csv = self.folder / "losses.csv"
        if accelerator.is_main_process:
            self._drop_rows_after(done)
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
            accelerator.init_trackers(recipe.name, config=_flatten(recipe.to_dict()))

    def __enter__(self) -> MetricsLogger:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        # Not accelerate's end_training, which ends the process group too: the export still needs it.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process and self.csv.exists():
            plot_curve(self.csv, self.folder / "losses.png", self.recipe.name)

    def update(self, update: int, values: dict[str, float]) -> None:
        """Log `values` after `update` finished generator updates."""
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

    def _drop_rows_after(self, done: int) -> None:
        """Remove rows that a killed run wrote after its last checkpoint: this run writes them again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.csv.exists():
            return
        lines = self.csv.read_text().splitlines()
        kept = [line for line in lines[1:] if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= done]
        self.csv.write_text("\n".join([*lines[:1], *kept]) + "\n")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as flat `section.key` entries; values that trackers do not take become strings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
