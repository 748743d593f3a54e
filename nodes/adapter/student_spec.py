"""What a student was trained for (`StudentSpec`), stored on its MODEL, where LoRA loaders and clones keep it.

ComfyUI's own loaders store nothing, so the file that they have read the MODEL from is looked at.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ...salt.errors import InputError
from ...salt.spec import StudentSpec
from .clip_size import USUAL_FPS
from .comfy_model import latent_channels, wan_model
from .core_versions import file_of
from .model_sampling import patched_shift

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)
OPTION = "salt_student"  # in model_options
UNKNOWN = (
    "the MODEL's file does not say what it was trained for: 4 steps, shift 5 and a full memory are used where the "
    "nodes set nothing else (Load Salt Student knows the released students)"
)
# What the files say from which other loaders have read their MODELs. Read once: a file may be replaced later.
_of_files: WeakKeyDictionary[BaseModel, StudentSpec | None] = WeakKeyDictionary()


def with_spec(model: ModelPatcher, spec: StudentSpec) -> ModelPatcher:
    """A clone of MODEL that has `spec`."""
    clone = model.clone()
    clone.model_options[OPTION] = spec
    return clone


def known_spec(model: ModelPatcher) -> StudentSpec | None:
    """The student's settings as stored on the MODEL or in its file; None where neither has any (GGUF, a plain Wan)."""
    spec = model.model_options.get(OPTION)
    if spec is not None:
        return spec
    if model.model not in _of_files:
        from ...salt.checkpoints.reader import read_spec
        from ...salt.checkpoints.wan22 import wan22_spec

        path = file_of(model)
        spec = None if path is None else read_spec(path)
        if path is not None and spec is None:
            spec = wan22_spec(path, {"out_channels": wan_model(model).out_dim})
        _of_files[model.model] = spec
        if _of_files[model.model] is None:
            log.info("Salt: %s", UNKNOWN)
    return _of_files[model.model]


def spec_of(model: ModelPatcher) -> StudentSpec | None:
    """The student's settings, or None for a MODEL that has none and is not known to be a student.

    ComfyUI's loader recognises autoregressive files itself; for those without settings it is the default ones. The
    shift is that of ModelSamplingSD3 where one has set it.
    """
    spec = known_spec(model)
    if spec is None and type(wan_model(model)).__name__ == "CausalWanModel":
        spec = unknown_spec(model)
    return spec if spec is None else with_patched_shift(model, spec)


def unknown_spec(model: ModelPatcher) -> StudentSpec:
    """What is taken of a MODEL without settings: the frames per second are those of the released ones of its kind."""
    return StudentSpec(fps=USUAL_FPS[latent_channels(model)])


def fps_of(model: ModelPatcher) -> int:
    """Frames per second of a MODEL's clips."""
    return (known_spec(model) or unknown_spec(model)).fps


def with_patched_shift(model: ModelPatcher, spec: StudentSpec) -> StudentSpec:
    """The settings with the shift that a node has set on MODEL, if one has."""
    shift = patched_shift(model)
    return spec if shift is None else replace(spec, shift=shift)


def autoregressive_spec(model: ModelPatcher, frames_per_block: int) -> StudentSpec:
    """Settings of an autoregressive student; `frames_per_block` above 0 overrides the student's own.

    Raises InputError for a MODEL that is not known to be one, saying what to do.
    """
    spec = spec_of(model)
    if spec is not None and spec.frames_per_block == 0:
        raise InputError(
            "model",
            "is a bidirectional student, and this node needs an autoregressive one; sample it with Salt Sigmas and "
            "ComfyUI's SamplerCustomAdvanced (euler, or lcm)",
        )
    if spec is None and not frames_per_block:
        raise InputError(
            "model",
            "has no student's settings (a plain Wan? A LongLive 2.0 has longlive in its file's name); load it with "
            "Load Salt Student, or, if the file is an autoregressive student all the same (GGUF, another loader), set "
            "frames_per_block",
        )
    spec = spec or with_patched_shift(model, unknown_spec(model))
    if not frames_per_block or frames_per_block == spec.frames_per_block:
        return spec
    log.info(
        "Salt: blocks of %d latent frames as set on the node; the student was trained for %d",
        frames_per_block,
        spec.frames_per_block,
    )
    return replace(spec, frames_per_block=frames_per_block)
