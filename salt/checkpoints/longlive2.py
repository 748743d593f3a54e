"""LongLive 2.0's files (Wan 2.2 TI2V 5B): the settings of its students, and the packed files that are not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..memory import MemoryPolicy
from ..schedule import step_list
from ..spec import SHOT_PREFIX, WAN22_FPS, StudentSpec
from .tensor_files import CheckpointError

NVFP4 = ".quantized_weight_values"
LONGLIVE2 = StudentSpec(
    frames_per_block=8,
    policy=MemoryPolicy("shots", window=32, sink=8, shot_offset=8),
    rule="longlive2",
    stepping="unipc",
    fps=WAN22_FPS,
    shot_prefix=SHOT_PREFIX,
    gives_first_frame=True,
)
TWO_STEPS = replace(LONGLIVE2, steps=step_list(2))


def longlive2_spec(path: Path) -> StudentSpec:
    """The settings of a file. They say nothing of their steps: those in a folder whose name ends in `S2` take two."""
    names = (path.stem, path.absolute().parent.name)
    return TWO_STEPS if any(name.upper().endswith("-S2") for name in names) else LONGLIVE2


def refuse_nvfp4(content: Mapping[str, object], file: Path) -> None:
    """Raise CheckpointError for weights packed in NVFP4 (`model_4o6.pt`), at the top of the file or one level below."""
    nested = [part for part in content.values() if isinstance(part, Mapping)]
    packed = next((str(name) for part in (content, *nested) for name in part if str(name).endswith(NVFP4)), None)
    if packed is not None:
        raise CheckpointError(
            f"{file}: found packed NVFP4 weights ({packed[-80:]}), which only LongLive 2.0's kernels read; expected "
            "the bfloat16 file of the same model (model_te.pt or model_bf16.pt)"
        )
