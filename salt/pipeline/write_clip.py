"""Writes a clip to a video file while it is generated, with a progress line in the terminal."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..io.printable import printable
from ..io.video import VideoWriter
from ..memory import KVMemory
from ..models.async_decoder import most_latents_for_extension
from ..parallel.no_frames import NoFrames
from ..rollout import Step
from .pipeline import SaltPipeline
from .run import Chunk


@dataclass(frozen=True)
class GenerationStats:
    """Measurements of one clip. seconds: wall time; first: until its first frames were decoded.

    width, height: pixels; nfe: denoising steps per block; attention: the kernel that computed it; kernels: whether
    fused kernels were used; encoder: of the source video, where it is not Wan's.
    """

    frames: int
    seconds: float
    first: float
    width: int = 0
    height: int = 0
    nfe: int = 0
    attention: str = ""
    kernels: bool = False
    encoder: str = ""

    @property
    def rate(self) -> float:
        """Pixel frames per second."""
        return self.frames / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        rate, first = f"{self.rate:.1f} frames/s", f"first frame after {self.first:.2f} s"
        clip = f"{self.frames} frames in {self.seconds:.1f} s"
        attention = f", attention {self.attention}" if self.attention else ""
        kernels = ", fused kernels" if self.kernels else ""
        source = f", video encoded by {self.encoder}" if self.encoder else ""
        return f"{clip} ({self.width}x{self.height}, NFE {self.nfe}), {rate}, {first}{attention}{kernels}{source}"


class ProgressDisplay:
    """A progress line for one clip: blocks, steps, frames per second, and when the first frame came.

    Call `step` before every model call and `chunk` after every decoded block.
    """

    def __init__(self, title: str) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
        )
        title = printable(title)
        self.task = self.bar.add_task(title if len(title) <= 40 else title[:39] + "…", status="", total=None)
        self.began = time.perf_counter()
        self.frames, self.first, self.ended = 0, 0.0, self.began
        self.width, self.height, self.nfe = 0, 0, 0
        self.position = ""

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
        self.position = f"block {max(step.block, 0) + 1}/{step.blocks} " + (
            f"step {step.step + 1}/{step.steps}" if step.kind == "denoise" else step.kind
        )
        self.bar.update(self.task, completed=done, total=step.blocks * total, status=self._status())

    def chunk(self, chunk: Chunk) -> None:
        self.ended = time.perf_counter()
        self.frames += chunk.pixels.shape[2]
        self.height, self.width = chunk.pixels.shape[3:]
        self.first = self.first or self.ended - self.began
        self.bar.update(self.task, status=self._status())

    def _status(self) -> str:
        if not self.frames:
            return self.position
        return f"{self.position}  {self.stats.rate:.1f} frames/s  first after {self.first:.2f} s"

    @property
    def stats(self) -> GenerationStats:
        return GenerationStats(self.frames, self.ended - self.began, self.first, self.width, self.height, self.nfe)


@dataclass
class WrittenClip:
    """latents: [B, C, F, H, W] of the latest blocks, where they were asked for. memory: as the rollout left it.

    A bidirectional model has no memory: None.
    """

    stats: GenerationStats
    latents: list[Tensor] = field(default_factory=list)
    memory: KVMemory | None = None


def write_clip(
    pipe: SaltPipeline, prompt: str, out: Path | None, seed: int, inputs: dict[str, Any], keep_latents: bool = False
) -> WrittenClip:
    """Write one clip, frame by frame as blocks finish; after an interruption the file holds the finished ones.

    out: None in a process that computes a part of the clip, and writes and shows nothing.
    inputs: further arguments of `SaltPipeline.stream`. keep_latents: return the latents that an extension needs.
    """
    latents: list[Tensor] = []
    memory = None
    if out is None:
        pipe.set_decoder(NoFrames)
    with ExitStack() as opened:
        display = ProgressDisplay(prompt)
        video = None
        if out is not None:
            opened.enter_context(display)
            video = opened.enter_context(VideoWriter(out, pipe.spec.fps))
        for chunk in pipe.stream(prompt, seed=seed, on_step=display.step, **inputs):
            if video is not None:
                video.write(chunk.frames[0])
            display.chunk(chunk)
            memory = chunk.memory
            if keep_latents and memory is not None:
                latents.append(chunk.latents)
                most = most_latents_for_extension(memory.policy)
                while most is not None and sum(x.shape[2] for x in latents[1:]) >= most:
                    latents.pop(0)
    stats = replace(display.stats, attention=pipe.attention.name, kernels=pipe.kernels.used)
    if "video" in inputs and pipe.encoder_kind == "taehv":
        stats = replace(stats, encoder="TAEHV")
    return WrittenClip(stats, latents, memory)
