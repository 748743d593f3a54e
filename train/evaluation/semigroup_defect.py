"""The semigroup defect of a student module on prompts and seeds, for the trainer and the evaluate command.

The protocol, and the measuring itself, are the engine's: `salt.semigroup_defect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from salt.conditioning import Conditioning
from salt.memory import KVMemory, MemoryPolicy
from salt.model_input import FlowModel
from salt.models.transformer_salt import CausalModel
from salt.noise import NoiseSource, SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.sampling import BidirectionalModel, sample_bidirectional
from salt.schedule import STEP_LISTS, Schedule
from salt.semigroup_defect import OPERATORS, TRIPLES, DefectMeter, Defects, Operator, Triple, mean_defects
from salt.spec import StudentSpec
from train.rollout.random_draws import number


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
    count, device = conditioning.text.shape[0], conditioning.text.device
    batch = batch or count
    bidirectional = settings.frames_per_block == 0
    call = BidirectionalModel(student) if bidirectional else CausalModel(student)
    dtype = compute_dtype(student, device)
    meters = []
    for seed, first in product(seeds, range(0, count, batch)):
        rows = range(count)[first : first + batch]
        part = part_of(conditioning, slice(first, first + batch))
        own = [number("defect", seed, row) for row in rows]
        noise = SeededNoise(own, len(own), student.config.out_channels, settings.height, settings.width, device)
        meters.append(DefectMeter(call, noise, settings.steps, settings.shift, triples, operators, dtype))
        _play(meters[-1], student, part, settings, noise, dtype)
    return mean_defects(meters)


def part_of(conditioning: Conditioning, rows: slice) -> Conditioning:
    """Some prompts of a conditioning."""
    given = {name: value for name, value in vars(conditioning).items() if value is not None}
    return replace(conditioning, **{name: value[rows] for name, value in given.items()})


def compute_dtype(student: Any, device: torch.device) -> torch.dtype:
    """The dtype of a student's keys and values: autocast's where it is on, else its own (norms may be finer)."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return student.dtype


def _play(
    call: FlowModel[Conditioning],
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


def defect_rows(defects: Defects) -> list[dict[str, Any]]:
    """Plain dictionaries for JSON."""
    return [{"triple": list(triple), "operator": operator, "defect": v} for (triple, operator), v in defects.items()]
