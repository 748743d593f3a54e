"""What the launcher says about this process in its environment, known before torch is imported."""

from __future__ import annotations

import os

from ..errors import InputError


def process_count() -> int:
    """Processes that the launcher (torchrun, accelerate) has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """This process's number among all of them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the process that prints, known before the processes have joined."""
    return process_rank() == 0


def check_launcher(module: str) -> None:
    """Raise InputError where accelerate was asked for several processes of `module` and has started this one alone.

    Its launcher does so with `--cpu`, and without `--multi_gpu` where it sees fewer than two GPUs. It then sets the
    address at which the processes were to meet, and not their number.
    """
    accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if accelerate and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate launch --num_processes",
            "found one process, expected several (accelerate starts one where it uses no GPU): use torchrun "
            f"--nproc_per_node N -m {module} ...",
        )
