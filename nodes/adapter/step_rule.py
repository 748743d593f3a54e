"""How a student steps between noise levels, where a node's widgets or a graph's SIGMAS choose the levels."""

from __future__ import annotations

from ...salt.errors import InputError
from ...salt.schedule import Schedule, Stepping
from ...salt.spec import StudentSpec

RULES = {"longlive2": "LongLive 2.0", "krea": "Krea realtime", "streamdiffusion2": "StreamDiffusionV2"}


def student_stepping(stepping: Stepping, spec: StudentSpec) -> Stepping:
    """What a stepping widget means: its `sde` is the student's own way, as in training."""
    return spec.stepping if stepping == "sde" else stepping


def check_sigmas_tell_steps(spec: StudentSpec) -> None:
    """Raise InputError for a student whose timesteps do not follow from the noise levels, which is all SIGMAS hold."""
    if spec.rule != "wan":
        raise InputError(
            "model",
            f"is a student with the steps of {RULES[spec.rule]}, whose timesteps SIGMAS cannot hold; use Salt Rollout",
        )
    check_sigmas_tell_blocks(spec.schedule, "model")


def check_sigmas_tell_blocks(schedule: Schedule, field: str) -> None:
    """Raise InputError where a clip's first block takes other steps than the others. field: what chooses them."""
    if schedule.first.nfe != schedule.nfe:
        raise InputError(
            field,
            f"chooses {schedule.first.nfe} steps for the first block and {schedule.nfe} for the others, which SIGMAS "
            "cannot hold; use Salt Rollout",
        )
