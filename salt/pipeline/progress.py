"""Progress of one call: a bar, and diffusers' callback at the end of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ..rollout import Step
from .prepare import PreparedRun

if TYPE_CHECKING:
    from .pipeline import SaltPipeline

OnStep = Callable[[Step], None]


class StepProgress:
    """Progress bar and callback of a call. A step has ended when the next one is about to begin."""

    def __init__(self, pipe: SaltPipeline, job: PreparedRun, callback: Callable[..., Any] | None) -> None:
        self.pipe, self.callback, self.timesteps = pipe, callback, job.settings.schedule.timesteps
        self.bar: Any = cast(Any, pipe).progress_bar(total=job.calls)
        self.under_way: Step | None = None
        self.index = 0

    def __enter__(self) -> OnStep:
        return self.begin

    def begin(self, step: Step | None) -> None:
        if (ended := self.under_way) is not None:
            self.bar.update()
            if self.callback is not None:
                timestep = self.timesteps[ended.step] if ended.kind == "denoise" else 0.0
                self.callback(self.pipe, self.index, timestep, {"step": ended})
            self.index += 1
        self.under_way = step

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.begin(None)
        self.bar.close()
