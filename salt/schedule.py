"""Noise schedule and flow-matching arithmetic: step lists, shift, sigma and timestep, noising, x0 and Euler steps.

Flow matching as Wan 2.1 and Salt use it (arXiv 2604.03118, section 3): x_t = (1 - sigma) x0 + sigma eps,
flow v = eps - x0, timestep = 1000 sigma. A *step* is a point on the unwarped axis (0, 1000]; the shift warps it.
A `StepRule` says which model calls follow from steps and shift; other families than Wan 2.1's have rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .acceleration.transfers import to_device
from .errors import InputError
from .io.fields import shown

NUM_TRAIN_TIMESTEPS = 1000
MIN_SHIFT, MAX_SHIFT = 0.01, 100.0
StepRule = Literal["wan", "longlive2", "krea", "streamdiffusion2"]
Stepping = Literal["sde", "ode", "unipc"]
STEPPINGS: tuple[Stepping, ...] = ("sde", "ode", "unipc")
STEP_LISTS: dict[int, tuple[float, ...]] = {
    8: (1000, 875, 750, 625, 500, 375, 250, 125),
    4: (1000, 750, 500, 250),
    2: (1000, 500),
}


STREAMDIFFUSION2_STEPS = (700.0, 500.0, 400.0, 200.0)
KREA_SHIFT = 5.0  # of the table in which Krea's transformer looks up noise levels, whatever the steps' own shift


def step_list(nfe: int, rule: StepRule = "wan", strength: float = 1.0) -> tuple[float, ...]:
    """The evenly spaced step list with `nfe` steps; 8, 4 and 2 are the lists Salt trains on.

    StreamDiffusionV2's are the first of four. Krea's lists end at 0 and have whole numbers; strength: they begin at
    1000 strength.
    Raises InputError for nfe below 1 or above NUM_TRAIN_TIMESTEPS.
    """
    if not 1 <= nfe <= NUM_TRAIN_TIMESTEPS:
        raise InputError("nfe", f"found {shown(nfe)}, expected 1 to {NUM_TRAIN_TIMESTEPS}")
    if rule == "krea":
        return tuple(float(int(s)) for s in torch.linspace(NUM_TRAIN_TIMESTEPS * strength, 0, nfe).tolist())
    if rule == "streamdiffusion2" and nfe <= len(STREAMDIFFUSION2_STEPS):
        return STREAMDIFFUSION2_STEPS[:nfe]
    return STEP_LISTS.get(nfe) or tuple(NUM_TRAIN_TIMESTEPS * (nfe - i) / nfe for i in range(nfe))


def check_steps(steps: Sequence[float], rule: StepRule = "wan", field: str = "steps") -> tuple[float, ...]:
    """Validate a step list: at least one step and at most 1000, strictly falling, within (0, 1000].

    Krea's may end at 0. field: what an error names.
    """
    if len(steps) > NUM_TRAIN_TIMESTEPS:
        raise InputError(field, f"found {len(steps)}, expected at most {NUM_TRAIN_TIMESTEPS}")
    steps = tuple(float(s) for s in steps)
    falling = all(a > b for a, b in zip(steps, steps[1:], strict=False))
    above_0 = bool(steps) and (steps[-1] > 0 or (steps[-1] == 0 and rule == "krea"))
    if not falling or not above_0 or steps[0] > NUM_TRAIN_TIMESTEPS:
        allowed = "[0, 1000]" if rule == "krea" else "(0, 1000]"
        raise InputError(field, f"found {shown(list(steps))}, expected strictly falling values in {allowed}")
    return steps


def warp(step: Tensor | float, shift: float = 5.0) -> Tensor:
    """Step in [0, 1000] -> sigma in [0, 1]: sigma = shift u / (1 + (shift - 1) u), u = step / 1000 (float64 inside)."""
    u = torch.as_tensor(step, dtype=torch.float64) / NUM_TRAIN_TIMESTEPS
    return shift * u / (1 + (shift - 1) * u)


def timestep_to_sigma(timestep: Tensor | float) -> Tensor:
    """timestep in [0, 1000] -> sigma in [0, 1]."""
    return torch.as_tensor(timestep) / NUM_TRAIN_TIMESTEPS


@dataclass(frozen=True)
class ModelCall:
    """One denoising call of a block: what the model sees, and what the sampler does with its flow.

    timestep: the model's, in [0, 1000]. sigma: noise level with which the flow becomes x0 = x - sigma flow.
    next_sigma: noise level that the latents are brought to after the call; 0 after the last one, which leaves x0.
    """

    timestep: float
    sigma: float
    next_sigma: float


def model_calls(timesteps: Sequence[float], sigmas: Sequence[float]) -> tuple[ModelCall, ...]:
    """Calls whose latents have the noise level that their sigma says."""
    return tuple(ModelCall(*call) for call in zip(timesteps, sigmas, [*sigmas[1:], 0.0], strict=True))


def _wan_calls(steps: tuple[float, ...], shift: float) -> tuple[ModelCall, ...]:
    """timestep = 1000 sigma."""
    sigmas = [float(s) for s in warp(torch.tensor(steps, dtype=torch.float64), shift)]
    return model_calls([NUM_TRAIN_TIMESTEPS * s for s in sigmas], sigmas)


def _longlive2_calls(steps: tuple[float, ...], shift: float) -> tuple[ModelCall, ...]:
    """Wan's own samplers: steps begin at 999 instead of 1000, timesteps are whole numbers, sigmas are float32."""
    sigmas = warp(0.999 * torch.tensor(steps, dtype=torch.float64), shift)
    timesteps = [float(math.floor(NUM_TRAIN_TIMESTEPS * s)) for s in sigmas.tolist()]
    return model_calls(timesteps, sigmas.float().tolist())


def _krea_calls(steps: tuple[float, ...], shift: float) -> tuple[ModelCall, ...]:
    """A step at 0 is a call at timestep 0, whose latents have the least noise of a table of 1000 levels.

    x0 is computed with the level of another table that is nearest to the timestep.
    """
    timesteps = (NUM_TRAIN_TIMESTEPS * warp(torch.tensor(steps, dtype=torch.float64), shift)).tolist()
    own, wrapper = nearest_levels(timesteps, shift), nearest_levels(timesteps, KREA_SHIFT)
    return tuple(ModelCall(*call) for call in zip(timesteps, wrapper, [*own[1:], 0.0], strict=True))


def nearest_levels(timesteps: Sequence[float], shift: float) -> list[float]:
    """For each timestep the nearest noise level of a table of 1000, which the shift warps."""
    levels = warp(torch.arange(NUM_TRAIN_TIMESTEPS, 0, -1, dtype=torch.float64), shift)
    return [float(levels[(levels - t / NUM_TRAIN_TIMESTEPS).abs().argmin()]) for t in timesteps]


def _streamdiffusion2_calls(steps: tuple[float, ...], shift: float) -> tuple[ModelCall, ...]:
    """Steps are the model's timesteps as they are; the shift is that of the table in which their levels are found."""
    return model_calls(steps, nearest_levels(steps, shift))


STEP_RULES: dict[StepRule, Callable[[tuple[float, ...], float], tuple[ModelCall, ...]]] = {
    "wan": _wan_calls,
    "longlive2": _longlive2_calls,
    "krea": _krea_calls,
    "streamdiffusion2": _streamdiffusion2_calls,
}


@dataclass(frozen=True)
class Schedule:
    """The steps of a block and the shift that warps them to noise levels.

    steps: before the shift, strictly falling, in (0, 1000] (Krea's may end at 0); one model call each. shift: 0.01 to
    100; 1 leaves steps as they are. rule: which model calls they are. first_steps: of the first block that a clip
    samples, which has no past to lean on; () for the same steps (rule wan only).
    Raises InputError for other values. Sources: Wan 2.1's flow-matching schedule as in Salt (arXiv 2604.03118);
    LongLive 2.0's; Krea realtime's; StreamDiffusionV2's; first_steps: ASD's rule, as in Causal Forcing++ (arXiv
    2605.15141).
    """

    steps: tuple[float, ...] = STEP_LISTS[4]
    shift: float = 5.0
    rule: StepRule = "wan"
    first_steps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in STEP_RULES:
            raise InputError("rule", f"found {shown(self.rule)}, expected {' or '.join(STEP_RULES)}")
        object.__setattr__(self, "steps", check_steps(self.steps, self.rule))
        if not MIN_SHIFT <= self.shift <= MAX_SHIFT:
            raise InputError("shift", f"found {self.shift}, expected {MIN_SHIFT:g} to {MAX_SHIFT:g}")
        if self.first_steps and self.rule != "wan":
            raise InputError("first_steps", f"found some with step rule {self.rule}, expected none")
        if self.first_steps:
            object.__setattr__(self, "first_steps", check_steps(self.first_steps, field="first_steps"))

    @classmethod
    def of(cls, nfe: int, shift: float = 5.0, rule: StepRule = "wan") -> Schedule:
        return cls(step_list(nfe, rule), shift, rule)

    @property
    def nfe(self) -> int:
        return len(self.steps)

    @property
    def first(self) -> Schedule:
        """The schedule of the first block that a clip samples."""
        return replace(self, steps=self.first_steps or self.steps, first_steps=())

    def with_steps(self, steps: tuple[float, ...]) -> Schedule:
        """Other steps; the first block keeps its own where these are more."""
        return replace(self, steps=steps, first_steps=self.first_steps if len(self.first_steps) > len(steps) else ())

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        """The denoising calls of a block, in order."""
        return STEP_RULES[self.rule](self.steps, self.shift)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Warped sigmas, one per evaluation, without the final 0."""
        return tuple(call.sigma for call in self.calls)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The model's timesteps in [0, 1000], one per evaluation."""
        return tuple(call.timestep for call in self.calls)


def first_block(frames_per_block: int, independent_first_frame: bool, rule: StepRule) -> int:
    """Latent frames of a clip's first block where it is unlike the others, else 0: StreamDiffusionV2's has one more."""
    if rule == "streamdiffusion2":
        return frames_per_block + 1
    return int(independent_first_frame)


def expand_sigma(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Shape sigma for a latent `like` [B, C, F, H, W]: scalars stay, [B] -> [B,1,1,1,1], [B, F] -> [B,1,F,1,1]."""
    if not isinstance(sigma, Tensor):
        # Filled where the latents are: a number that is copied there would make the host wait for the device.
        return torch.full((), sigma, dtype=like.dtype, device=like.device)
    sigma = to_device(sigma.to(like.dtype), like.device)
    if sigma.ndim == 0:
        return sigma
    if sigma.ndim == 1:
        return sigma.view(-1, 1, 1, 1, 1)
    if sigma.ndim == 2:
        return sigma[:, None, :, None, None]
    raise ValueError(f"sigma: found shape {tuple(sigma.shape)}, expected [], [B] or [B, F]")


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x_t = (1 - sigma) x0 + sigma eps; latents [B, C, F, H, W], sigma scalar, [B] or [B, F]."""
    sigma = expand_sigma(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def flow_to_x0(x_t: Tensor, flow: Tensor, sigma: Tensor | float) -> Tensor:
    """x0 = x_t - sigma v."""
    return x_t - expand_sigma(sigma, x_t) * flow


def euler(x: Tensor, flow: Tensor, sigma_from: Tensor | float, sigma_to: Tensor | float) -> Tensor:
    """Psi^{a->b}(x) = x - (sigma_a - sigma_b) v(x, a): the student's one-step Euler operator (paper, section 3.2)."""
    return x - (expand_sigma(sigma_from, x) - expand_sigma(sigma_to, x)) * flow
