"""Metrics of a training run: lines and progress bar, losses.csv, its plot, and a tracker (TensorBoard, wandb)."""

from __future__ import annotations

import csv
import os
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from salt.io.atomic import write_text
from salt.io.printable import printable
from train.config.recipe import Recipe
from train.monitoring.plots import plot_curve
from train.monitoring.throughput import Throughput

LINE_SECONDS = 10.0  # at least, between two lines
PLOT_SECONDS = 60.0  # at least, between two drawings of the plot
HEADER = "step,name,value\n"
ROW = re.compile(r"([0-9]+),.+,[^,\n]+\n")
MEASURED = (
    "seconds",
    "tokens_per_second",
    "peak_share",
    "memory_gib",
    "seconds_left",
)  # what the logger adds to a method's values


class MetricsLogger:
    """Writes metrics to the terminal, losses.csv and the tracker, and draws their plot, in the main process only.

    There is a line for the first update, the last, and those between that come at least LINE_SECONDS after the line
    before. A terminal has a progress bar below them.
    done: finished updates of a resumed run; later rows of losses.csv are dropped. throughput: of the run's models.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, done: int, throughput: Throughput) -> None:
        self.recipe, self.accelerator, self.throughput = recipe, accelerator, throughput
        self.folder = Path(recipe.run.out)
        self.csv = self.folder / "losses.csv"
        if accelerator.is_main_process:
            self._drop_rows_after(done)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, disable=not accelerator.is_main_process)
        self.first = done
        self.began = self.printed = self.plotted = time.monotonic()
        self.task = self.progress.add_task(printable(recipe.name), total=recipe.optimisation.updates, completed=done)
        if recipe.run.tracker != "none":
            accelerator.init_trackers(recipe.name, config=_flatten(recipe.to_dict()))

    def __enter__(self) -> MetricsLogger:
        self.progress.start()
        self.began = self.printed = self.plotted = time.monotonic()
        if self.accelerator.is_main_process:
            self.progress.console.print(self._beginning(), markup=False, highlight=False, soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        # Not accelerate's end_training, which ends the process group too: the export still needs it.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process and self.csv.exists():
            self._plot()

    def _beginning(self) -> str:
        name, updates = printable(self.recipe.name), self.recipe.optimisation.updates
        if self.first >= updates:
            return f"{name}: all {self.first} updates are done; a larger optimisation.updates goes on from them"
        return (
            f"{name}: updates {self.first + 1} to {updates}, into {printable(str(self.folder))} (a line comes after "
            "the first; Ctrl-C saves a checkpoint, from which the same command goes on)"
        )

    def update(self, update: int, values: dict[str, float], seconds: float) -> None:
        """Log `values` after `update` finished updates of the student, with seconds, memory and time left."""
        now, updates = time.monotonic(), self.recipe.optimisation.updates
        # With the time that samples and checkpoints take.
        left = (now - self.began) / (update - self.first) * (updates - update)
        measured = {"seconds": seconds} | self.throughput.values(update - 1, seconds)
        shown = values | measured | {"memory_gib": memory_gib(self.accelerator.device)}
        text = " ".join(f"{k} {v:.3g}" for k, v in shown.items())
        self.progress.update(self.task, completed=update)
        due = update in (self.first + 1, updates) or now - self.printed >= LINE_SECONDS
        if due and self.accelerator.is_main_process:
            line = f"{self.recipe.name}: update {update}/{updates}, {text}, left {timedelta(seconds=round(left))}"
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.printed = now
        self.add(update, shown | {"seconds_left": left})
        if self.accelerator.is_main_process and now - self.plotted >= PLOT_SECONDS:
            self._plot()
            self.plotted = now

    def add(self, update: int, values: dict[str, float]) -> None:
        """Write more values of an update to losses.csv and the tracker."""
        if self.recipe.run.tracker != "none":
            self.accelerator.log(values, step=update)
        if not self.accelerator.is_main_process:
            return
        with self.csv.open("a") as file:
            file.write("" if file.tell() else HEADER)
            rows = ([update, name, f"{value:.9g}"] for name, value in values.items())
            csv.writer(file, lineterminator="\n").writerows(rows)

    def _plot(self) -> None:
        plot_curve(self.csv, self.folder / "losses.png", self.recipe.name)

    def _drop_rows_after(self, done: int) -> None:
        """Remove rows that a killed run wrote after its last checkpoint, the last perhaps in part: they come again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.csv.exists():
            return
        lines = self.csv.read_text().splitlines(keepends=True)
        kept = [line for line in lines if (row := ROW.fullmatch(line)) and int(row[1]) <= done]
        write_text(self.csv, HEADER + "".join(kept))


def memory_gib(device: torch.device) -> float:
    """GiB that this process occupies: the most so far of a GPU's memory, or the RAM that it has now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return psutil.Process(os.getpid()).memory_info().rss / 2**30


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as flat `section.key` entries; values that trackers do not take become strings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
