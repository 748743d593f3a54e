"""AnyFlow-FAR's diffusers folders: how they are recognised, and the settings of the student in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import no_init_weights
from torch import nn

from ..acceleration.presets import AccelerationPreset
from ..errors import InputError
from ..io.fields import Between, FieldError, read_fields, read_object
from ..io.model_folders import ModelFolderError, check_model_folder
from ..memory import MemoryPolicy
from ..models.anyflow import AnyFlowTransformer3DModel
from ..models.transformer_salt import SaltTransformer3DModel
from ..schedule import MAX_SHIFT, MIN_SHIFT
from ..spec import StudentSpec

ANYFLOW = "AnyFlowFARTransformer3DModel"  # diffusers' class
SHIFT = 5.0  # of the released schedulers


@dataclass(frozen=True)
class _SchedulerFields:
    shift: Annotated[float, Between(MIN_SHIFT, MAX_SHIFT)] = 1.0


def is_anyflow(index: dict[str, Any]) -> bool:
    """Whether a model_index.json names AnyFlow-FAR's transformer."""
    return index.get("transformer") == ["diffusers", ANYFLOW]


def anyflow_spec(transformer: object, shift: float = SHIFT) -> StudentSpec:
    """What an AnyFlow-FAR transformer was trained for. shift: of its scheduler."""
    config = dict(getattr(transformer, "config", {}))
    blocks, full = config["chunk_partition"], config["full_chunk_limit"] - 1
    return StudentSpec(
        frames_per_block=max(blocks),
        shift=shift,
        policy=MemoryPolicy("far", window=full),
        independent_first_frame=blocks[0] == 1 < max(blocks),
        stepping="ode",
    )


def scheduler_shift(folder: Path) -> float:
    """The shift in a folder's scheduler_config.json, the usual one without it. Raises ModelFolderError, naming it."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return SHIFT
    try:
        return read_fields(_SchedulerFields, read_object(path)).shift
    except FieldError as error:
        raise ModelFolderError(f"{path}: {error}") from error


def is_flow_map(transformer: object) -> bool:
    """Whether a transformer is AnyFlow-FAR's, diffusers' own class or ours."""
    return isinstance(transformer, AnyFlowTransformer3DModel) or type(transformer).__name__ == ANYFLOW


def transformer_folder(path: str | Path) -> Path | None:
    """The folder of AnyFlow-FAR's transformer at a path: itself, or `transformer/` in it; None for any other path.

    Raises ModelFolderError for a config.json that cannot be read.
    """
    for folder in (Path(path), Path(path) / "transformer"):
        config = folder / "config.json"
        try:
            if config.is_file() and read_object(config).get("_class_name") == ANYFLOW:
                return folder
        except FieldError as error:
            raise ModelFolderError(f"{config}: {error}") from error
    return None


def load_anyflow(folder: Path, dtype: torch.dtype | None) -> AnyFlowTransformer3DModel:
    """The transformer in a diffusers folder. Raises ModelFolderError for one that cannot be read."""
    check_diffusers(folder)
    check_model_folder(folder)
    try:
        theirs = getattr(diffusers, ANYFLOW).from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelFolderError(f"{folder}: cannot be loaded: {error}") from error
    return as_anyflow(theirs)


def as_anyflow(theirs: nn.Module) -> AnyFlowTransformer3DModel:
    """diffusers' AnyFlow-FAR transformer as a student; parameters are shared. A student is returned as it is."""
    if isinstance(theirs, AnyFlowTransformer3DModel):
        return theirs
    config = {key: value for key, value in dict(getattr(theirs, "config", {})).items() if not key.startswith("_")}
    with no_init_weights(), init_empty_weights(include_buffers=False):
        student = AnyFlowTransformer3DModel(**config)
    student.load_state_dict(theirs.state_dict(), assign=True)
    return student.train(theirs.training)


def check_preset(preset: AccelerationPreset, transformer: SaltTransformer3DModel) -> None:
    """Raise InputError for a preset that compiles or has float8 layers, with AnyFlow-FAR."""
    if is_flow_map(transformer) and (preset.compiled or preset.fp8):
        raise InputError(
            "prefer", "found a preset that compiles, expected exact or one that saves memory (AnyFlow-FAR)"
        )


def check_diffusers(folder: Path) -> None:
    """Raise ModelFolderError where diffusers has no class for AnyFlow-FAR's transformer."""
    if not hasattr(diffusers, ANYFLOW):
        version = diffusers.__version__
        raise ModelFolderError(f"{folder}: found {ANYFLOW}, which diffusers {version} has not; 0.42 has it")


def check_switches(policy: MemoryPolicy, switches: Iterable[str]) -> None:
    """Raise InputError for a prompt change that a `far` memory cannot follow."""
    if policy.kind == "far" and "recache" in switches:
        raise InputError(
            "prompt_schedule", f"found recache, expected keep or cut: a memory of {policy} is written once"
        )


def check_policy(policy: MemoryPolicy, transformer: SaltTransformer3DModel) -> None:
    """Raise InputError for a `far` memory of another model, and for another memory of AnyFlow-FAR."""
    if isinstance(transformer, AnyFlowTransformer3DModel):
        if policy.kind != "far":
            expected = f"far:{transformer.config.full_chunk_limit - 1}, the memory that AnyFlow-FAR was trained with"
            raise InputError("memory_policy", f"found {policy}, expected {expected}")
    elif policy.kind == "far":
        raise InputError("memory_policy", f"found {policy}, which only AnyFlow-FAR has an embedding for")
