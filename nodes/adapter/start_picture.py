"""The start picture that core's *ARVideoI2V* leaves on a MODEL, as latents that a clip starts with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...salt.errors import InputError
from .clip_size import size_text

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

NODE = "ARVideoI2V"


def has_start_picture(model: ModelPatcher) -> bool:
    """Whether *ARVideoI2V* is before this MODEL."""
    return _latents_of(model.model_options) is not None


def start_picture(options: Mapping[str, Any], batch: int, size: tuple[int, int]) -> Tensor | None:
    """Latents [batch, 16, F, H, W] of the start picture, as a LATENT holds them, in `model_options`; None without one.

    size: latent (height, width) of the clip. Raises InputError for a picture of another size or batch, or VAE.
    """
    latents = _latents_of(options)
    if latents is None:
        return None
    if latents.ndim != 5 or latents.shape[1] != 16:
        found = f"latents {list(latents.shape)}"
        raise InputError("model", f"has a start picture of {found} ({NODE}), expected one by Wan 2.1's VAE")
    found, expected = size_text(*latents.shape[3:]), size_text(*size)
    if found != expected:
        raise InputError("model", f"has a start picture of {found} pixels ({NODE}), expected the clip's {expected}")
    if latents.shape[0] not in (1, batch):
        raise InputError("model", f"has {latents.shape[0]} start pictures ({NODE}), expected 1 or the batch's {batch}")
    return latents.expand(batch, -1, -1, -1, -1)


def _latents_of(options: Mapping[str, Any]) -> Tensor | None:
    return options.get("transformer_options", {}).get("ar_config", {}).get("initial_latent")
