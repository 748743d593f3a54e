"""Sockets that need or exclude each other: checked before a run by what is connected, and in it by what has come."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from ...salt.errors import InputError
from .input_errors import UNCONNECTED

NO_PROMPT = "connect CLIP Text Encode to positive, or Salt Prompt Schedule to prompts"
NO_DECODER = "needs Wan 2.1's VAE (or Wan 2.2's for TI2V) connected, which the video is decoded by"
MAX_CFG = 30.0
STARTS = (("start_image", "latents"), ("start_image", "memory"))
PAIRS = (("positive", "prompts"), *STARTS, *(("video", start) for start in ("memory", "start_image", "latents")))
# What a VAE is needed for, where it is optional.
BY_VAE = {"video": "connected to vae", "start_image": "connected to vae, or Wan 2.2's for TI2V"}


def no_prompt() -> InputError:
    return InputError("positive", f"or prompts must be connected: {NO_PROMPT}")


def check_start(connected: Collection[str]) -> None:
    """Raise InputError for sockets of which a clip can begin with one only."""
    _check_pairs(connected, STARTS)


def check_rollout(connected: Collection[str], cfg: float | None) -> None:
    """Raise InputError about the sockets of a rollout, by name. cfg: None where it is linked and not known yet."""
    _check_pairs(connected, PAIRS)
    if "positive" not in connected and "prompts" not in connected:
        raise no_prompt()
    for name, where in BY_VAE.items():
        if name in connected and "vae" not in connected:
            raise InputError(name, f"needs Wan 2.1's VAE {where}")
    if cfg is None:
        return
    if not 0 <= cfg <= MAX_CFG or not math.isfinite(cfg):
        raise InputError("cfg", f"found {cfg:g}, expected 0 to {MAX_CFG:g}")
    if cfg != 1 and "negative" not in connected:
        raise InputError("cfg", "needs a negative conditioning connected to negative", cfg)


def check_video_rollout(connected: Collection[str], cfg: float | None) -> None:
    """The same for a rollout that is decoded into a file."""
    if "vae" not in connected:
        raise InputError("vae", NO_DECODER)
    check_rollout(connected, cfg)


def _check_pairs(connected: Collection[str], pairs: Collection[tuple[str, str]]) -> None:
    for first, second in pairs:
        if first in connected and second in connected:
            raise InputError(first, f"and {second} cannot both be connected")


def answer(check: Callable[..., None], *arguments: float | str | None, **sockets: object) -> bool | str:
    """The answer of a node's `validate_inputs`: True, or what `check` says of the sockets that are connected."""
    try:
        check({name for name, value in sockets.items() if value is not UNCONNECTED}, *arguments)
    except InputError as error:
        return str(error)
    return True
