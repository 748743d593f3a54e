"""Sampling with bidirectional students and teachers: the whole clip at once on the steps of a schedule, no memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .errors import InputError
from .model_input import Condition, FlowModel, ModelInput
from .noise import NoiseSource
from .rollout import OnStepEnd, RolloutSettings, Step
from .schedule import NUM_TRAIN_TIMESTEPS, add_noise, euler, flow_to_x0


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
    sigmas = settings.schedule.sigmas
    x = noise(0, frames, 0)
    for i, sigma in enumerate(sigmas):
        step = Step(0, 1, i, len(sigmas), "denoise")
        if on_step is not None:
            on_step(step)
        t = x.new_full((x.shape[0],), sigma * NUM_TRAIN_TIMESTEPS)
        flow = model(ModelInput(x, t, conditioning))
        if guided and negative is not None:
            unconditional = model(ModelInput(x, t, negative))
            flow = unconditional + settings.guidance * (flow - unconditional)
        x0 = flow_to_x0(x, flow, sigma)
        if i + 1 == len(sigmas):
            x = x0
        elif settings.takes_euler(i):
            x = euler(x, flow, sigma, sigmas[i + 1])
        else:
            x = add_noise(x0, noise(0, frames, i + 1), sigmas[i + 1])
        if on_step_end is not None:
            x = on_step_end(step, x)
    return x
