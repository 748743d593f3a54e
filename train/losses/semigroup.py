"""Semigroup-defect loss of SC-DMD: one long Euler step of the student against two shorter ones.

For the exact flow, Phi^{s->e} = Phi^{m->e} o Phi^{s->m}; the loss is the student's departure from it.
Source: Salt (arXiv 2604.03118, section 3.2) and its released recipe. Latents are [B, C, F, H, W]; t_s > t_m > t_e.
The defect as a metric: `salt.semigroup_defect`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salt.schedule import NUM_TRAIN_TIMESTEPS, Schedule, euler, timestep_to_sigma


@dataclass(frozen=True)
class TimestepTriple:
    """Warped timesteps start > middle > end; end may be 0."""

    start: float
    middle: float
    end: float


def grid_triples(schedule: Schedule, exit_index: int, segments: int = 4) -> list[tuple[float, list[TimestepTriple]]]:
    """Candidates of the grid rule for an exit step: for each candidate end, (its probability, its triples).

    Boundaries are the inference grid within the training list (every len/segments-th step) and 0. With t_s the exit
    step and `next` the one after it, t_e is drawn uniformly from the two largest boundaries below `next`, and t_m from
    the list's steps strictly between t_e and t_s. Empty for the last step. The grid matters: composing through
    timesteps that DMD never supervised gives unreliable targets.
    Raises ValueError for a list that the segments do not divide, or an exit index outside of it.
    """
    times = schedule.timesteps
    if len(times) % segments:
        raise ValueError(f"grid: found {len(times)} training steps, expected a multiple of the {segments} segments")
    if not 0 <= exit_index < len(times):
        raise ValueError(f"exit index: found {exit_index}, expected 0 to {len(times) - 1}")
    if exit_index + 1 == len(times):
        return []
    boundaries = [*times[:: len(times) // segments], 0.0]
    start, following = times[exit_index], times[exit_index + 1]
    ends = [b for b in boundaries if b < following][:2]
    return [
        (1 / len(ends), [TimestepTriple(start, middle, end) for middle in times if end < middle < start])
        for end in ends
    ]


def draw_triple(schedule: Schedule, exit_index: int, generator: torch.Generator) -> TimestepTriple | None:
    """One (t_s, t_m, t_e) by the grid rule, or None at the last step. Equal generators draw equal triples."""
    options = grid_triples(schedule, exit_index)
    if not options:
        return None
    _, triples = options[int(torch.randint(len(options), (), generator=generator))]
    return triples[int(torch.randint(len(triples), (), generator=generator))]


def direct_endpoint(x_s: Tensor, v_s: Tensor, triple: TimestepTriple) -> Tensor:
    """Psi^{s->e}(x_s) = x_s - (sigma_s - sigma_e) v_s."""
    return euler(x_s, v_s, _sigma(triple.start), _sigma(triple.end))


def middle_point(x_s: Tensor, v_s: Tensor, triple: TimestepTriple) -> Tensor:
    """Psi^{s->m}(x_s), where the second velocity is evaluated."""
    return euler(x_s, v_s, _sigma(triple.start), _sigma(triple.middle))


def composed_endpoint(x_m: Tensor, v_m: Tensor, triple: TimestepTriple) -> Tensor:
    """Psi^{m->e}(x_m)."""
    return euler(x_m, v_m, _sigma(triple.middle), _sigma(triple.end))


def time_weight(timestep: float) -> float:
    """1 - t_s / 1000 on warped time: zero at pure noise, at most 0.375 on the 8-step list that Salt exits from."""
    return 1.0 - timestep / NUM_TRAIN_TIMESTEPS


def semigroup_loss(direct: Tensor, composed: Tensor, weight: float = 1.0, stop_gradient: bool = True) -> Tensor:
    """L_SC = weight * mean((direct - stopgrad(composed))^2); without `stop_gradient`, both branches get gradient."""
    target = composed.detach() if stop_gradient else composed
    return weight * (direct - target).square().mean()


def _sigma(timestep: float) -> Tensor:
    return timestep_to_sigma(torch.tensor(timestep, dtype=torch.float64))
