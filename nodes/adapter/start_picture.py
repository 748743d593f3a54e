"""Start pictures as latents that a clip starts with: an IMAGE, and what core's *ARVideoI2V* leaves on a MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...salt.errors import InputError
from .clip_size import FRAMES_PER_LATENT, frame_count, size_text
from .comfy_model import latent_channels, pixels_per_latent
from .connections import BY_VAE
from .streaming_vae import ComfyStreamEncoder, check_vae, is_wan_vae

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

NODE = "ARVideoI2V"


def has_start_picture(model: ModelPatcher) -> bool:
    """Whether *ARVideoI2V* is before this MODEL."""
    return _latents_of(model.model_options) is not None


def start_picture(model: ModelPatcher, options: Mapping[str, Any], batch: int, size: tuple[int, int]) -> Tensor | None:
    """Latents [batch, C, F, H, W] of the start picture, as a LATENT holds them, in `model_options`; None without one.

    size: latent (height, width) of the clip. Raises InputError for a picture of another size or batch, or VAE.
    """
    latents, channels = _latents_of(options), latent_channels(model)
    if latents is None:
        return None
    if latents.ndim != 5 or latents.shape[1] != channels:
        found = f"latents {list(latents.shape)}"
        raise InputError(
            "model", f"has a start picture of {found} ({NODE}), expected {channels} channels, as of the MODEL's VAE"
        )
    found, expected = (size_text(*s, pixels_per_latent(model)) for s in ((latents.shape[3], latents.shape[4]), size))
    if found != expected:
        raise InputError("model", f"has a start picture of {found} pixels ({NODE}), expected the clip's {expected}")
    if latents.shape[0] not in (1, batch):
        raise InputError("model", f"has {latents.shape[0]} start pictures ({NODE}), expected 1 or the batch's {batch}")
    return latents.expand(batch, -1, -1, -1, -1)


def encode_start_image(
    vae: VAE | None, image: Tensor, size: tuple[int, int], batch: int, channels: int, still: int = 1
) -> Tensor:
    """A start image (or the frames of a start video) [T, H, W, 3] as latents [batch, C, F, h, w].

    size: width and height in pixels. channels: C, the MODEL's. still: latent frames that a single image fills.
    """
    import comfy.utils

    if vae is None:
        raise InputError("start_image", f"needs Wan 2.1's VAE {BY_VAE['start_image']}")
    if is_wan_vae(vae):
        check_vae(vae, channels)
    if image.shape[0] == 1:
        image = image.expand(frame_count(still), -1, -1, -1)
    whole = (image.shape[0] - 1) // FRAMES_PER_LATENT + 1  # latent frames
    frames = image[: frame_count(whole), ..., :3].movedim(-1, 1)
    pixels = comfy.utils.common_upscale(frames, *size, "bicubic", "center")
    if is_wan_vae(vae):
        encoder = ComfyStreamEncoder(vae)
        parts = [encoder.encode_samples(x.mul(2).sub(1).movedim(0, 1)[None]) for x in pixels.split(1)]
        return torch.cat(parts, dim=2).expand(batch, -1, -1, -1, -1)
    latents = vae.encode(pixels.movedim(1, -1))
    if latents.ndim != 5 or latents.shape[1] != channels:
        found = f"found one whose latents are {list(latents.shape)}"
        raise InputError("vae", f"{found}, expected one of {channels} latent channels")
    return latents.expand(batch, -1, -1, -1, -1)


def _latents_of(options: Mapping[str, Any]) -> Tensor | None:
    return options.get("transformer_options", {}).get("ar_config", {}).get("initial_latent")
