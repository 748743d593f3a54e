"""Checks of fused kernels: each beside its plain twin at Wan's width, and rollouts with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..acceleration.kernels.choice import ALL_KERNELS, trial_policy, use_kernels, why_not
from ..acceleration.kernels.chosen import NO_KERNELS
from ..acceleration.kernels.trials import Pair, memory_pairs, norm_pairs, residual_pairs
from ..memory import MemoryGeometry
from ..memory.policy import Precision
from .fast_paths import FLOAT32, PRECISIONS
from .machine import WINDOWED, Machine, relative_error
from .outcome import NotRun, Outcome, within

HEADS, HEAD_DIM, ROWS, COLUMNS = 12, 128, 30, 52  # of Wan 2.1 1.3B at 832x480
TOKENS = ROWS * COLUMNS
Pairs = Callable[[torch.device], Iterator[Pair]]


def norm(device: torch.device) -> Iterator[Pair]:
    return norm_pairs(device, torch.bfloat16, HEADS * HEAD_DIM, batch=1, tokens=TOKENS)


def residual(device: torch.device) -> Iterator[Pair]:
    return residual_pairs(device, torch.bfloat16, HEADS * HEAD_DIM, batch=1, tokens=TOKENS)


def memory(device: torch.device, precision: Precision) -> Iterator[Pair]:
    geometry = MemoryGeometry(1, HEADS, HEAD_DIM, ROWS, COLUMNS)
    for relative in (False, True):
        for in_main_memory in (False, True):
            policy = trial_policy(relative, precision, in_main_memory)
            yield from memory_pairs(policy, geometry, device, torch.bfloat16)


def kernel(machine: Machine, pairs: Pairs) -> Outcome:
    """A kernel beside its twin, in bfloat16."""
    _need_kernels(machine, torch.bfloat16)
    errors = [(pair.error / pair.limit, pair.error, pair.limit, pair.name) for pair in pairs(machine.device)]
    _, error, limit, name = max(errors)
    return within(error, limit, f"{len(errors)} results, largest error ({name})")


def rollouts(machine: Machine) -> Outcome:
    """Rollouts with every kernel beside rollouts without, over an exact and an int8 memory."""
    _need_kernels(machine, torch.float32)
    student, errors = machine.student(torch.float32), []
    for policy, limit in ((WINDOWED, FLOAT32), (f"{WINDOWED},int8", PRECISIONS["int8"])):
        expected = machine.clip(student, policy, torch.float32, fuse=True)
        try:
            use_kernels(student, ALL_KERNELS)
            made = machine.clip(student, policy, torch.float32, fuse=True)
        finally:
            use_kernels(student, NO_KERNELS)
        errors.append(relative_error(made, expected) / limit * FLOAT32)
    return within(max(errors), FLOAT32)


def _need_kernels(machine: Machine, dtype: torch.dtype) -> None:
    if fault := why_not(machine.device, dtype):
        raise NotRun(fault)
