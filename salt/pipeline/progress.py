"""Progress bar of a run, and diffusers' callback at the end of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..rollout import Step

OnStep = Callable[[Step], None]


class Bar(Protocol):
    """The part of a tqdm bar that is used here."""

    def update(self) -> object: ...
    def close(self) -> object: ...


class StepProgress:
    """Progress bar and callback of a call. A step has ended when the next one is about to begin."""

    def __init__(
        self, bar: Bar, timesteps: tuple[float, ...], callback: Callable[[int, float, Step], object] | None
    ) -> None:
        self.bar, self.timesteps, self.callback = bar, timesteps, callback
        self.under_way: Step | None = None
        self.index = 0

    def __enter__(self) -> OnStep:
        return self.begin

    def begin(self, step: Step | None) -> None:
        if (ended := self.under_way) is not None:
            self.bar.update()
            if self.callback is not None:
                timestep = self.timesteps[ended.step] if ended.kind == "denoise" else 0.0
                self.callback(self.index, timestep, ended)
            self.index += 1
        self.under_way = step

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.begin(None)
        self.bar.close()
