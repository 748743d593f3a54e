"""Student files as native MODELs: the files to choose from, and ComfyUI's loader on whatever the engine can read."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...salt.errors import InputError
from .clip_size import FRAMES_PER_LATENT
from .core_versions import misread, model_from_state
from .model_size import set_size
from .student_spec import with_spec

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ...salt.checkpoints import Checkpoint
    from ...salt.checkpoints.candidates import Likeness
    from ...salt.checkpoints.reader import Weights
    from ...salt.spec import StudentSpec

log = logging.getLogger(__name__)
FRAMES_PER_BLOCK = {"auto": None, "blocks of 3": 3, "frame by frame": 1, "bidirectional": 0}
DTYPES = {"default": None, "fp8_e4m3fn": "float8_e4m3fn", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


# What a file could be, by its path, time and size: headers are read once.
_likeness: dict[tuple[str, int, int], Likeness] = {}


def student_files() -> tuple[list[str], int]:
    """Names of files in models/diffusion_models and of diffusers folders in models/diffusers: first those with a known
    student's settings, then other Wan transformers, then the rest; and how many come before the rest."""
    import folder_paths

    names = list(folder_paths.get_filename_list("diffusion_models"))
    for root in folder_paths.get_folder_paths("diffusers"):
        if Path(root).is_dir():
            names += sorted(f"diffusers/{p.name}" for p in Path(root).iterdir() if p.is_dir())
    kinds = {name: likeness_of(name) for name in names}
    order = [name for kind in ("student", "wan", "other") for name in names if kinds[name] == kind]
    return order, sum(kind != "other" for kind in kinds.values())


def likeness_of(name: str) -> Likeness:
    """Of a name of `student_files`."""
    from ...salt.checkpoints.candidates import likeness

    try:
        path = student_path(name)
        facts = path.stat()
    except OSError:
        return "other"  # it has gone meanwhile, or is a link to a disk that is not mounted
    key = (str(path), facts.st_mtime_ns, facts.st_size)
    if key not in _likeness:
        _likeness[key] = likeness(path)
    return _likeness[key]


def check_student(name: str) -> str:
    """The name, where it is one of `student_files`. Raises InputError for none, FileNotFoundError for another."""
    if not name:
        raise InputError("student", "found no file chosen; `salt pull` lists the released students")
    if name not in student_files()[0]:
        raise missing_student(name)
    return name


def missing_student(name: str) -> FileNotFoundError:
    import folder_paths

    folders = ", ".join(folder_paths.get_folder_paths("diffusion_models"))
    return FileNotFoundError(f"{name}: found no such file, expected it in one of: {folders}")


def student_path(name: str) -> Path:
    """The path of a name of `student_files`. Raises FileNotFoundError naming the folder it belongs in."""
    import folder_paths

    if name.startswith("diffusers/"):
        for root in folder_paths.get_folder_paths("diffusers"):
            folder = Path(root) / name.removeprefix("diffusers/")
            if folder.is_dir():
                return folder
    if found := folder_paths.get_full_path("diffusion_models", name):
        return Path(found)
    raise missing_student(name)


def student_timing(path: Path, trained_as: str) -> dict[str, object] | None:
    """Latent frames of a block, and seconds of a latent frame, of the student in a file; None where it does not say.

    trained_as: a key of FRAMES_PER_BLOCK. Reads no weights. Raises CheckpointError, and InputError for another key.
    """
    from ...salt.checkpoints import describe

    if trained_as not in FRAMES_PER_BLOCK:
        raise InputError("trained_as", f"found {trained_as}, expected {', '.join(FRAMES_PER_BLOCK)}")
    spec, block = describe(path).get("spec"), FRAMES_PER_BLOCK[trained_as]
    if spec is None:
        return None
    block = spec["frames_per_block"] if block is None else block
    return {"frames_per_block": block, "latent_seconds": FRAMES_PER_LATENT / spec["fps"]}


def load_model(
    path: Path,
    weights: Weights = "auto",
    dtype: str = "default",
    trained_as: str = "auto",
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """A MODEL with the student's spec, through ComfyUI's loader, from any file that `salt.checkpoints` reads.

    weights: which of a training file's weights. dtype: a key of DTYPES. trained_as: a key of FRAMES_PER_BLOCK.
    disable_dynamic: ComfyUI's own argument, when it loads the MODEL again.
    Raises CheckpointError for a file that is no Wan 2.1 transformer, naming what it looks like.
    """
    import torch

    from ...salt.checkpoints import CheckpointError, read_checkpoint
    from ...salt.checkpoints.wan_keys import to_wan
    from ...salt.checkpoints.writer import comfy_metadata

    checkpoint = read_checkpoint(path, weights)
    spec = spec_for(checkpoint, trained_as)
    name = DTYPES[dtype]
    options = {"dtype": getattr(torch, name)} if name else {}
    causal = spec is not None and spec.frames_per_block > 0
    state = {to_wan(key) or key: tensor for key, tensor in checkpoint.tensors()}
    metadata = comfy_metadata(checkpoint.config, causal)
    if unread := misread(state, metadata):
        raise CheckpointError(f"{path}: this ComfyUI is too old for a model with {unread}; 0.27 reads it")
    model = model_from_state(state, metadata, options, disable_dynamic)
    if model is None:
        raise ValueError(f"{path}: this ComfyUI does not know the model in it, expected Wan 2.1 T2V or I2V")
    if checkpoint.size is not None:
        set_size(model, checkpoint.size)
    model.cached_patcher_init = (load_model, (path, weights, dtype, trained_as))
    if spec is None:
        log.warning(
            "Salt: %s does not say how it was trained; if it is a student, set trained_as in Load Salt Student",
            path.name,
        )
        return model
    return with_spec(model, spec)


def spec_for(checkpoint: Checkpoint, trained_as: str) -> StudentSpec | None:
    """The student's settings: as set on the node, else the file's own; None where neither is known.

    A torch file with a generator in it is a student even if it does not say so: no plain Wan comes as one.
    """
    from ...salt.spec import StudentSpec

    known = checkpoint.spec or (StudentSpec() if "torch" in checkpoint.format else None)
    frames_per_block = FRAMES_PER_BLOCK[trained_as]
    if frames_per_block is None:
        return known
    return replace(known or StudentSpec(), frames_per_block=frames_per_block)
