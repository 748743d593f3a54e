"""What a student was trained for (`StudentSpec`), stored on its MODEL, where LoRA loaders and clones keep it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from ...salt.errors import InputError
from ...salt.spec import StudentSpec
from .comfy_model import wan_model

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)
OPTION = "salt_student"  # in model_options


def with_spec(model: ModelPatcher, spec: StudentSpec) -> ModelPatcher:
    """A clone of MODEL that has `spec`."""
    clone = model.clone()
    clone.model_options[OPTION] = spec
    return clone


def spec_of(model: ModelPatcher) -> StudentSpec | None:
    """The student's settings, or None for a MODEL without any (ComfyUI's loaders, GGUF, a plain Wan).

    ComfyUI's loader recognises autoregressive files itself; for those it is the default settings.
    """
    spec = model.model_options.get(OPTION)
    if spec is None and type(wan_model(model)).__name__ == "CausalWanModel":
        return StudentSpec()
    return spec


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
            "has no student's settings (a plain Wan 2.1?); load it with Load Salt Student, or, if the file is an "
            "autoregressive student all the same (GGUF, another loader), set frames_per_block",
        )
    spec = spec or StudentSpec()
    if not frames_per_block or frames_per_block == spec.frames_per_block:
        return spec
    log.info(
        "Salt: blocks of %d latent frames as set on the node; the student was trained for %d",
        frames_per_block,
        spec.frames_per_block,
    )
    return replace(spec, frames_per_block=frames_per_block)
