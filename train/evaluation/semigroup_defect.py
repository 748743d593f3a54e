"""The semigroup defect of a student over prompts and seeds, for the trainer and the `evaluate` command.

`salt.semigroup_defect` defines the protocol and measures one clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from salt.conditioning import Conditioning
from salt.memory import KVMemory, MemoryPolicy
from salt.models.causal_model import BidirectionalModel, CausalModel
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings
from salt.schedule import STEP_LISTS, Schedule, Stepping, StepRule
from salt.semigroup_defect import (
    OPERATORS,
    TRIPLES,
    DefectMeter,
    Defects,
    Operator,
    Triple,
    check_student,
    mean_defects,
)
from salt.spec import StudentSpec
from train.data.shards import with_progress
from train.rollout.random_draws import seed_for


@dataclass(frozen=True)
class DefectSettings:
    """The clip on which a student is measured. frames, height, width: of the latents.

    frames_per_block 0: a bidirectional student. steps, rule, stepping: of the rollout; every t_s is among the steps.
    """

    frames: int = 21
    height: int = 60
    width: int = 104
    frames_per_block: int = 3
    policy: MemoryPolicy = MemoryPolicy()
    shift: float = 5.0
    independent_first_frame: bool = False
    steps: tuple[float, ...] = STEP_LISTS[4]
    rule: StepRule = "wan"
    stepping: Stepping = "sde"

    @classmethod
    def of(
        cls,
        spec: StudentSpec,
        frames: int,
        height: int,
        width: int,
        policy: MemoryPolicy | None = None,
        steps: tuple[float, ...] = STEP_LISTS[4],
    ) -> DefectSettings:
        """Settings with the blocks, shift and (unless `policy` is set) memory of a student's spec."""
        policy = spec.policy if policy is None else policy
        return cls(
            frames, height, width, spec.frames_per_block, policy, spec.shift, spec.independent_first_frame, steps,
            spec.rule, spec.stepping,
        )  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.shift, self.rule)

    def check(self) -> None:
        """Raise InputError where the defect is not defined, or the memory needs a VAE."""
        check_student(self.schedule, self.policy if self.frames_per_block else None)


@torch.no_grad()
def measure_defect(
    student: SaltTransformer3DModel,
    conditioning: Conditioning,
    settings: DefectSettings,
    seeds: Sequence[int] = (0,),
    triples: Sequence[Triple] = TRIPLES,
    operators: Sequence[Operator] = OPERATORS,
    batch: int | None = None,
    progress: bool = False,
) -> Defects:
    """The defect of a student at every triple, by every operator: the mean over the prompts, seeds and blocks.

    student: runs in the dtype of its parameters, or in autocast's where that is on.
    conditioning: one row per prompt, on the student's device.
    seeds: one clip of every prompt for each. The same seeds draw the same noise, so values of two students, or of one
        student at two updates, can be compared.
    batch: prompts at a time (default: all); it changes no value. progress: print a line on time left after each.
    Cost: per clip one ordinary rollout and, for each block and triple, a model call per operator.
    Raises InputError for a triple that does not fall, or whose t_s is not in `settings.steps`.
    """
    count, device = conditioning.text.shape[0], conditioning.text.device
    batch = batch or count
    bidirectional = settings.frames_per_block == 0
    call = BidirectionalModel(student) if bidirectional else CausalModel(student)
    dtype = compute_dtype(student, device)
    settings.check()
    schedule = settings.schedule
    how = RolloutSettings(schedule, settings.stepping, settings.frames_per_block or 1, settings.independent_first_frame)
    meters = []
    batches = list(product(seeds, range(0, count, batch)))
    for seed, first in with_progress(batches, "defect", "batches") if progress else batches:
        rows = range(count)[first : first + batch]
        part = conditioning_rows(conditioning, slice(first, first + batch))
        own = [seed_for("defect", seed, row) for row in rows]
        noise = SeededNoise(own, len(own), student.config.out_channels, settings.height, settings.width, device)
        memory = None
        if not bidirectional:
            geometry = student.memory_geometry(len(own), settings.height, settings.width)
            memory = KVMemory(settings.policy, geometry, dtype, device, settings.frames)
        meters.append(DefectMeter(call, noise, schedule, triples, operators, dtype))
        meters[-1].measure(part, memory, settings.frames, how)
    return mean_defects(meters)


def conditioning_rows(conditioning: Conditioning, rows: slice) -> Conditioning:
    """Some rows (prompts) of a conditioning."""
    tensors = {name: value for name, value in vars(conditioning).items() if value is not None}
    return replace(conditioning, **{name: value[rows] for name, value in tensors.items()})


def compute_dtype(student: SaltTransformer3DModel, device: torch.device) -> torch.dtype:
    """The dtype of a student's keys and values: autocast's where it is on, else its own (norms may be finer)."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return student.dtype


def defect_rows(defects: Defects) -> list[dict[str, Any]]:
    """Plain dictionaries for JSON."""
    return [{"triple": list(triple), "operator": operator, "defect": v} for (triple, operator), v in defects.items()]
