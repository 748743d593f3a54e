"""The steps of one block from noise to clean latents: fresh noise (SDE), Euler (ODE) or UniPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ..schedule import add_noise, euler, flow_to_x0
from .unipc import UniPC

if TYPE_CHECKING:
    from ..block_plan import RolloutSettings


class BlockSolver:
    """Steps of one block, or of a whole clip; a new object for each, as UniPC remembers the steps before.

    settings: its schedule's `calls` and its stepping are used. noise: the block's fresh noise of a draw, from 1 on.
    """

    def __init__(self, settings: RolloutSettings, noise: Callable[[int], Tensor]) -> None:
        self.calls, self.noise = settings.schedule.calls, noise
        self.stepping = settings.stepping
        self.unipc = UniPC(self.calls) if settings.stepping == "unipc" else None

    def step(self, index: int, x: Tensor, flow: Tensor) -> Tensor:
        """The latents after call `index`, from those before it and its flow [B, C, F, H, W]; clean after the last."""
        call = self.calls[index]
        if self.unipc is not None:
            return self.unipc.step(x, flow)
        if index + 1 == len(self.calls):
            return flow_to_x0(x, flow, call.sigma)
        if "ode" == (self.stepping[index] if isinstance(self.stepping, tuple) else self.stepping):
            return euler(x, flow, call.sigma, call.next_sigma)
        return add_noise(flow_to_x0(x, flow, call.sigma), self.noise(index + 1), call.next_sigma)
