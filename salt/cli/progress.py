"""What a generation shows while it runs: blocks, steps, frames per second, and when the first frame came."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from ..pipeline import Chunk
    from ..rollout import Step


@dataclass(frozen=True)
class GenerationStats:
    """What was measured. seconds: wall time of the clip; first: until its first frames were decoded.

    width, height: pixels; nfe: denoising steps per block.
    """

    frames: int
    seconds: float
    first: float
    width: int = 0
    height: int = 0
    nfe: int = 0

    @property
    def rate(self) -> float:
        """Pixel frames per second."""
        return self.frames / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        rate, first = f"{self.rate:.1f} frames/s", f"first frame after {self.first:.2f} s"
        made = f"{self.frames} frames in {self.seconds:.1f} s"
        return f"{made} ({self.width}x{self.height}, NFE {self.nfe}), {rate}, {first}"


class ProgressDisplay:
    """A progress line for one clip. `step` and `chunk` are told what happens; `figures` says what was measured."""

    def __init__(self, title: str) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn()
        )
        self.task = self.bar.add_task(title if len(title) <= 40 else title[:39] + "…", told="", total=None)
        self.began = time.perf_counter()
        self.frames, self.first, self.ended = 0, 0.0, self.began
        self.width, self.height, self.nfe = 0, 0, 0
        self.at = ""

    def __enter__(self) -> ProgressDisplay:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, step: Step) -> None:
        self.nfe = step.steps
        total = step.steps + 1  # the context pass is the last
        done = max(step.block, 0) * total + (step.steps if step.kind == "context" else step.step)
        self.at = f"block {max(step.block, 0) + 1}/{step.blocks} " + (
            f"step {step.step + 1}/{step.steps}" if step.kind == "denoise" else step.kind
        )
        self.bar.update(self.task, completed=done, total=step.blocks * total, told=self._told())

    def chunk(self, chunk: Chunk) -> None:
        self.ended = time.perf_counter()
        self.frames += chunk.pixels.shape[2]
        self.height, self.width = chunk.pixels.shape[3:]
        self.first = self.first or self.ended - self.began
        self.bar.update(self.task, told=self._told())

    def _told(self) -> str:
        if not self.frames:
            return self.at
        return f"{self.at}  {self.figures.rate:.1f} frames/s  first after {self.first:.2f} s"

    @property
    def figures(self) -> GenerationStats:
        return GenerationStats(self.frames, self.ended - self.began, self.first, self.width, self.height, self.nfe)
