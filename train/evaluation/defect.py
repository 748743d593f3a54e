"""The semigroup defect of a student: how far one long step lands from two shorter ones, on its own path.

Source: Salt (arXiv 2604.03118, section 3.2). The paper prints 0.0135 (DMD) and 0.0111 (SC-DMD) and calls its protocol
displacement-normalised and local, without saying more. Ours, for a triple (t_s, t_m, t_e) of steps before warping:

Where. x_s is the student's own state: a clip is made from noise and prompt as the engine makes it, re-noising on the
list of steps given, and every block is measured when it arrives at t_s, against the memory that the student has written
of its own earlier blocks. A bidirectional student is measured on the whole clip at once.

`euler`, the operator that L_SC speaks of, Psi^{a->b}(x) = x - (sigma_a - sigma_b) v(x, a):
    ||Psi^{s->e}(x_s) - Psi^{m->e}(Psi^{s->m}(x_s))||^2 / ||Psi^{s->e}(x_s) - x_s||^2
  which is ((sigma_m - sigma_e) / (sigma_s - sigma_e))^2 ||v_m - v_s||^2 / ||v_s||^2, and 0 for an exact flow that is
  straight. (One that bends has a defect though it be exact: an Euler step is a chord.)
`sampler`, what inference does: x0 is predicted and re-noised. With the noise of the last step shared, the two ways end
  (1 - sigma_e)(x0_s - x0_m) apart, so t_e is a mere factor, and the step itself moves mostly by fresh noise. What is
  compared is therefore x0, over the way to it, with x_m = (1 - sigma_m) x0_s + sigma_m eps:
    ||x0_s - x0_m||^2 / ||x0_s - x_s||^2
  Fresh noise may rightly change the picture, so this is no law that an exact student obeys: it is how much of what the
  first step decided the next one revises.

How averaged. Local: the ratio is taken per block of each clip, over its channels, frames and pixels; then the mean over
blocks, prompts and seeds, each counting the same. The ratios are squared; their root is a relative distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from salt.memory import KVMemory, MemoryPolicy
from salt.memory.attend import MemoryPass
from salt.noise import NoiseSource, SeededNoise
from salt.prompts import Conditioning
from salt.rollout import RolloutSettings, rollout
from salt.sample import BidirectionalModel, sample_bidirectional
from salt.schedule import NUM_TRAIN_TIMESTEPS, STEP_LISTS, Schedule, add_noise, flow_to_x0, warp
from salt.spec import StudentSpec
from salt.student import StudentModel
from train.choices import number
from train.losses.semigroup import GridTriple, composed_endpoint, direct_endpoint, middle_point

Operator = Literal["euler", "sampler"]
Triple = tuple[float, float, float]
Defects = dict[tuple[Triple, Operator], float]

OPERATORS: tuple[Operator, ...] = ("euler", "sampler")
# Each step of the 4-step grid, halved by the 8-step grid it is trained on.
TRIPLES: tuple[Triple, ...] = ((1000, 875, 750), (750, 625, 500), (500, 375, 250), (250, 125, 0))


@dataclass(frozen=True)
class DefectSettings:
    """What clip the student is measured on. frames, height, width: of the latents.

    frames_per_block 0: a bidirectional student. steps: the list its clip is made in; every t_s must be one of it.
    """

    frames: int = 21
    height: int = 60
    width: int = 104
    frames_per_block: int = 3
    policy: MemoryPolicy = MemoryPolicy()
    shift: float = 5.0
    independent_first_frame: bool = False
    steps: tuple[float, ...] = STEP_LISTS[4]

    @classmethod
    def of(cls, spec: StudentSpec, **others: Any) -> DefectSettings:
        """A student's own blocks, memory and shift; `others` by name."""
        return cls(
            **{
                "frames_per_block": spec.frames_per_block,
                "policy": spec.policy,
                "shift": spec.shift,
                "independent_first_frame": spec.independent_first_frame,
                **others,
            }
        )


def steps_for(triples: Sequence[Triple]) -> tuple[float, ...]:
    """The sparsest of the lists Salt trains on (4 or 8 steps) that has every t_s. Raises ValueError where none has."""
    for count in (4, 8):
        if all(t_s in STEP_LISTS[count] for t_s, _, _ in triples):
            return STEP_LISTS[count]
    stray = next(t_s for t_s, _, _ in triples if t_s not in STEP_LISTS[8])
    raise ValueError(f"triples: found t_s {stray:g}, expected one of {', '.join(f'{s:g}' for s in STEP_LISTS[8])}")


@torch.no_grad()
def measure_defect(
    student: Any,
    conditioning: Conditioning,
    settings: DefectSettings,
    seeds: Sequence[int] = (0,),
    triples: Sequence[Triple] = TRIPLES,
    operators: Sequence[Operator] = OPERATORS,
    batch: int | None = None,
) -> Defects:
    """The defect of a student at every triple, by every operator: the mean over the prompts, seeds and blocks.

    student: a module in the engine's sense, in training or not; it runs in the dtype of its parameters, or in
        autocast's where that is on. conditioning: one row per prompt, on the student's device.
    seeds: one clip of every prompt for each. The same seeds draw the same noise, so values of two students, or of one
        as it learns, can be laid beside each other. batch: prompts at a time (default: all); it changes no value.
    Cost: per clip one ordinary rollout and, for each block and triple, a call per operator.
    Raises ValueError for a triple that does not fall, or begins off the list of steps.
    """
    for triple in triples:
        _check(triple, settings.steps)
    count, device = conditioning.text.shape[0], conditioning.text.device
    batch = batch or count
    bidirectional = settings.frames_per_block == 0
    call = BidirectionalModel(student) if bidirectional else StudentModel(student)
    dtype = compute_dtype(student, device)
    sums: dict[tuple[Triple, Operator], list[Tensor]] = {(t, o): [] for t in triples for o in operators}
    for seed, first in product(seeds, range(0, count, batch)):
        rows = range(count)[first : first + batch]
        given = {name: value for name, value in vars(conditioning).items() if value is not None}
        part = replace(conditioning, **{name: value[first : first + batch] for name, value in given.items()})
        own = [number("defect", seed, row) for row in rows]
        noise = SeededNoise(own, len(own), student.config.out_channels, settings.height, settings.width, device)
        _play(_Measured(call, dtype, noise, settings.shift, sums), student, part, settings, noise, dtype)
    return {key: float(torch.cat(ratios).mean()) for key, ratios in sums.items()}


def compute_dtype(student: Any, device: torch.device) -> torch.dtype:
    """The dtype of a student's keys and values: autocast's where it is on, else its own (norms may be finer)."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return student.dtype


def _check(triple: Triple, steps: tuple[float, ...]) -> None:
    t_s, t_m, t_e = triple
    if not NUM_TRAIN_TIMESTEPS >= t_s > t_m > t_e >= 0:
        raise ValueError(f"triples: found {t_s:g},{t_m:g},{t_e:g}, expected falling steps from 1000 to 0")
    if t_s not in steps:
        raise ValueError(f"triples: found t_s {t_s:g}, expected one of the steps {', '.join(f'{s:g}' for s in steps)}")


def _play(
    call: Any,
    student: Any,
    conditioning: Conditioning,
    settings: DefectSettings,
    noise: NoiseSource,
    dtype: torch.dtype,
) -> None:
    """Make the clip; `call` measures on the way."""
    schedule = Schedule(settings.steps, settings.shift)
    if settings.frames_per_block == 0:
        sample_bidirectional(call, conditioning, noise, settings.frames, RolloutSettings(schedule))
        return
    geometry = student.memory_geometry(conditioning.text.shape[0], settings.height, settings.width)
    memory = KVMemory(settings.policy, geometry, dtype, conditioning.text.device, settings.frames)
    how = RolloutSettings(schedule, "sde", settings.frames_per_block, settings.independent_first_frame)
    for _ in rollout(call, conditioning, memory, noise, settings.frames, how):
        pass


class _Measured:
    """The student as the engine calls it. Where a triple begins, it also takes both ways and notes how they part."""

    def __init__(
        self,
        call: Callable[..., Tensor],
        dtype: torch.dtype,
        noise: NoiseSource,
        shift: float,
        sums: dict[tuple[Triple, Operator], list[Tensor]],
    ) -> None:
        self.call, self.dtype, self.noise, self.shift, self.sums = call, dtype, noise, shift, sums

    def __call__(self, x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        flow = self.flow(x, t, *rest)
        now = float(t.flatten()[0])
        for (triple, operator), ratios in self.sums.items():
            grid = GridTriple(*(NUM_TRAIN_TIMESTEPS * float(warp(step, self.shift)) for step in triple))
            if abs(now - grid.start) < 1e-3:
                ratios.append(self.ratio(operator, grid, x, flow, t, rest).cpu())
        return flow

    def flow(self, x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        """Latents and their noise level stay in float32; the student sees its own dtype."""
        return self.call(x.to(self.dtype), t, *rest).float()

    def ratio(self, operator: Operator, grid: GridTriple, x: Tensor, v_s: Tensor, t: Tensor, rest: tuple) -> Tensor:
        """The defect of each clip's block, [B]."""
        t_m = torch.full_like(t, grid.middle)
        if operator == "euler":
            direct = direct_endpoint(x, v_s, grid)
            x_m = middle_point(x, v_s, grid)
            other = composed_endpoint(x_m, self.flow(x_m, t_m, *rest), grid)
        else:
            sigma_m = grid.middle / NUM_TRAIN_TIMESTEPS
            start = rest[0].start_frame if isinstance(rest[0], MemoryPass) else 0
            direct = flow_to_x0(x, v_s, grid.start / NUM_TRAIN_TIMESTEPS)
            # A draw that the rollout never makes, so that the noise is fresh to this block.
            x_m = add_noise(direct, self.noise(start, x.shape[2], -1), sigma_m)
            other = flow_to_x0(x_m, self.flow(x_m, t_m, *rest), sigma_m)
        return (direct - other).square().flatten(1).sum(1) / (direct - x).square().flatten(1).sum(1)


def defect_table(rows: dict[str, Defects]) -> str:
    """A markdown table: a line per name and operator, a column per triple, then the mean of the line."""
    triples = list(dict.fromkeys(triple for row in rows.values() for triple, _ in row))
    head = "| | operator | " + " | ".join(",".join(f"{s:g}" for s in triple) for triple in triples) + " | mean |"
    lines = [head, "|" + "---|" * (len(triples) + 3)]
    for name, row in rows.items():
        present: list[Operator] = [o for o in OPERATORS if any(o == key for _, key in row)]
        for operator in present:
            values = [row[triple, operator] for triple in triples]
            cells = [f"{value:.5f}" for value in (*values, sum(values) / len(values))]
            lines.append(f"| {name} | {operator} | {' | '.join(cells)} |")
    return "\n".join(lines)


def defect_rows(defects: Defects) -> list[dict[str, Any]]:
    """Plain dictionaries for JSON."""
    return [{"triple": list(triple), "operator": operator, "defect": v} for (triple, operator), v in defects.items()]
