"""What follows the steps of a run: a progress bar, and diffusers' callback at the end of every denoising step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ..errors import InputError
from ..rollout import Step
from .prepare import PreparedRun

OnStep = Callable[[Step], None]
CallbackTensors = dict[str, Tensor | None]
StepEndCallback = Callable[[int, float, CallbackTensors], Mapping[str, Tensor | None] | None]


class Bar(Protocol):
    """The part of a tqdm bar that is used here."""

    def update(self) -> object: ...
    def close(self) -> object: ...


class StepProgress:
    """Progress bar over model calls. A call has ended when the next one is about to begin."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.running = False

    def __enter__(self) -> StepProgress:
        return self

    def step(self, step: Step) -> None:
        """Call before every model call."""
        if self.running:
            self.bar.update()
        self.running = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.running:
            self.bar.update()
        self.bar.close()


class StepEnd:
    """`callback_on_step_end` as the rollout calls it: `callback(index, timestep, tensors)` after every denoising step.

    index: counts the denoising steps of all blocks. timestep: in (0, 1000], of the step that has ended. tensors: those
    of `names` among `latents` [B, C, F, H, W] of the block, and `prompt_embeds` and `negative_prompt_embeds` [B, L, D]
    that hold in it. The latents among what the callback returns replace the block's.
    """

    def __init__(self, callback: StepEndCallback, names: Sequence[str], prepared: PreparedRun) -> None:
        self.callback, self.names, self.prepared = callback, tuple(names), prepared
        self.index = 0

    def __call__(self, step: Step, latents: Tensor) -> Tensor:
        run = self.prepared
        conditioning = run.conditioning.at(0 if run.memory is None else run.memory.next_frame).conditioning
        available: CallbackTensors = {
            "latents": latents,
            "prompt_embeds": conditioning.text,
            "negative_prompt_embeds": None if run.negative is None else run.negative.text,
        }
        settings = run.settings.first if run.begins and step.block == 0 else run.settings
        index, timestep = self.index, settings.schedule.timesteps[step.step]
        self.index += 1
        returned = self.callback(index, timestep, {name: available[name] for name in self.names}) or {}
        for name, tensor in returned.items():
            if name != "latents" and tensor is not available.get(name):
                raise InputError("callback_on_step_end", f"cannot replace {name}; change prompts by `prompt_schedule`")
        replaced = returned.get("latents")
        if replaced is None:
            return latents
        if replaced.shape != latents.shape:
            found, expected = tuple(replaced.shape), tuple(latents.shape)
            raise InputError("callback_on_step_end", f"returned latents of shape {found}, expected {expected}")
        return replaced
