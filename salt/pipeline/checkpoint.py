"""The transformer of a pipeline whose other components lie elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from ..checkpoints import load_student, read_checkpoint
from ..checkpoints.lora_merge import LoraSource, merge_loras
from ..checkpoints.wan22 import EITHER, is_wan22
from ..errors import InputError
from ..models.transformer_salt import SaltTransformer3DModel
from ..spec import StudentSpec
from .anyflow import anyflow_spec, load_anyflow, transformer_folder


def check_checkpoint(path: str | Path, weights: Literal["auto", "ema", "regular"]) -> None:
    """Raise the errors of `load_transformer` that need no weights."""
    if transformer_folder(path) is None:
        read_checkpoint(path, weights)


def file_size(path: str | Path, weights: Literal["auto", "ema", "regular", "critic"]) -> tuple[int, int] | None:
    """(height, width) in pixels that a student was trained for, as its file or folder says; None where it does not."""
    return None if transformer_folder(path) is not None else read_checkpoint(path, weights).size


def load_transformer(
    path: str | Path,
    weights: Literal["auto", "ema", "regular", "critic"],
    dtype: torch.dtype | None,
    lora: LoraSource | None,
    student: StudentSpec | None = None,
) -> tuple[SaltTransformer3DModel, StudentSpec]:
    """A student in any file that `salt.checkpoints` reads, or AnyFlow-FAR's transformer folder, and its settings.

    student: the settings, where they are not the file's own. Raises InputError where those are needed,
    `CheckpointError`, `ModelFolderError` and FileNotFoundError.
    """
    if (folder := transformer_folder(path)) is not None:
        if student is not None:
            raise InputError("student", f"has no effect with {path}, AnyFlow-FAR's, whose settings are its own")
        anyflow = load_anyflow(folder, dtype)
        merge_loras(anyflow, lora if lora is not None else ())
        return anyflow.eval(), anyflow_spec(anyflow)
    found = read_checkpoint(path, weights)
    spec = student or found.spec
    if spec is None and is_wan22(found.config):
        raise InputError("student", f"is needed: {path} has {EITHER}")
    return load_student(path, weights=weights, dtype=dtype, lora=lora), spec or StudentSpec()
