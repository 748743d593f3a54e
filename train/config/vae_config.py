"""Sizes of an autoencoder's latents: from its configuration, or from the latent channels where it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path

from diffusers import AutoencoderKLWan

from salt.io.fields import Count, FieldError, read_fields, read_object
from salt.planning.peaks import WAN22_VAE, WAN_VAE, VaeCosts
from salt.spec import WAN22_CHANNELS
from train.config.recipe import RecipeError


@dataclass(frozen=True)
class LatentScale:
    """A latent has `channels`, and stands for `spatial` rows and columns of pixels and `temporal` frames."""

    channels: int
    spatial: int
    temporal: int

    def pixel_frames(self, latent_frames: int) -> int:
        """Of a clip, whose first latent frame is one pixel frame."""
        return self.temporal * (latent_frames - 1) + 1


@dataclass(frozen=True)
class Sizes:
    """Keys of diffusers' configuration, which may leave them out."""

    z_dim: Count
    scale_factor_spatial: Count
    scale_factor_temporal: Count


def latent_scale(folder: str) -> LatentScale | None:
    """Of the autoencoder in a diffusers folder; None where there is none. Raises RecipeError for a damaged one."""
    path = Path(folder or "/nonexistent") / "config.json"
    if not path.is_file():
        return None
    defaults = {name: p.default for name, p in signature(AutoencoderKLWan.__init__).parameters.items()}
    try:
        found = read_fields(Sizes, {name: defaults[name] for name in Sizes.__annotations__} | read_object(path))
    except (FieldError, OSError) as error:
        raise RecipeError("models.vae", f"cannot be used ({path}: {error})") from error
    return LatentScale(found.z_dim, found.scale_factor_spatial, found.scale_factor_temporal)


def wan_vae(channels: int) -> tuple[VaeCosts, int]:
    """What Wan's autoencoder with so many latent channels costs, and the pixels along a side of its latents."""
    return (WAN22_VAE, 16) if channels == WAN22_CHANNELS else (WAN_VAE, 8)
