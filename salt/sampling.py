"""Sampling with bidirectional students and teachers: the whole clip at once on the steps of a schedule, no memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .errors import InputError
from .model_input import Condition, FlowModel, ModelInput
from .noise import NoiseSource
from .rollout import OnStepEnd, RolloutSettings, Step
from .solvers.block_solver import BlockSolver


def sample_bidirectional(
    model: FlowModel[Condition],
    conditioning: Condition,
    noise: NoiseSource,
    frames: int,
    settings: RolloutSettings,
    *,
    negative: Condition | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Tensor:
    """Latents [B, C, F, H, W] of a clip of `frames` latent frames, with gradient where the caller has it on.

    settings: its schedule, stepping and guidance are used. on_step: called before every step; what it raises ends the
    sampling. Raises InputError for guidance without a negative conditioning.
    """
    guided = settings.guidance != 1.0
    if guided and negative is None:
        raise InputError("guidance", "needs a negative conditioning", settings.guidance)
    solver = BlockSolver(settings, lambda draw: noise(0, frames, draw))
    x = noise(0, frames, 0)
    for i, call in enumerate(solver.calls):
        step = Step(0, 1, i, len(solver.calls), "denoise")
        if on_step is not None:
            on_step(step)
        t = x.new_full((x.shape[0],), call.timestep)
        flow = model(ModelInput(x, t, conditioning))
        if guided and negative is not None:
            unconditional = model(ModelInput(x, t, negative))
            flow = unconditional + settings.guidance * (flow - unconditional)
        x = solver.step(i, x, flow)
        if on_step_end is not None:
            x = on_step_end(step, x)
    return x
