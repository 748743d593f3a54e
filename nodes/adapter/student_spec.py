"""Host 1: what a student was trained for, riding on its MODEL through LoRA loaders, patches and clones."""

from __future__ import annotations

import logging
from typing import Any

from ...salt.spec import StudentSpec
from .comfy_model import wan_of

log = logging.getLogger(__name__)
KEY = "salt_student"


def with_spec(model: Any, spec: StudentSpec) -> Any:
    """A clone of MODEL that remembers `spec`."""
    clone = model.clone()
    clone.model_options[KEY] = spec
    return clone


def spec_of(model: Any) -> StudentSpec | None:
    """The student's settings, or None for a MODEL that carries none (core's loaders, GGUF, a plain Wan).

    Core's loader marks autoregressive files itself; of those the usual settings are taken.
    """
    spec = model.model_options.get(KEY)
    if spec is None and type(wan_of(model)).__name__ == "CausalWanModel":
        return StudentSpec()
    return spec


def autoregressive(model: Any, frames_per_block: int) -> StudentSpec:
    """Settings of an autoregressive student; `frames_per_block` above 0 is the user's word, which overrides.

    Raises ValueError for a MODEL that is not known to be one, naming what to do.
    """
    spec = spec_of(model)
    if spec is not None and spec.frames_per_block == 0:
        raise ValueError(
            "MODEL: found a bidirectional student, expected an autoregressive one; sample it with Salt Sigmas and "
            "core's SamplerCustomAdvanced (euler, or lcm)"
        )
    if spec is None and not frames_per_block:
        raise ValueError(
            "MODEL: found no student's settings on it (a plain Wan 2.1?), expected one from Load Salt Student; if the "
            "file is an autoregressive student all the same (GGUF, another loader), set frames_per_block"
        )
    spec = spec or StudentSpec()
    if not frames_per_block or frames_per_block == spec.frames_per_block:
        return spec
    log.info("Salt: blocks of %d latent frames by request, trained for %d", frames_per_block, spec.frames_per_block)
    return StudentSpec(frames_per_block, spec.steps, spec.shift, spec.policy, spec.independent_first_frame)
