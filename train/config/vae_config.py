"""Sizes of an autoencoder's latents: from its configuration, or from the latent channels where it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from salt.planning.peaks import WAN22_VAE, WAN_VAE, VaeCosts
from salt.spec import WAN22_CHANNELS


@dataclass(frozen=True)
class LatentScale:
    """A latent has `channels`, and stands for `spatial` rows and columns of pixels and `temporal` frames."""

    channels: int
    spatial: int
    temporal: int

    def pixel_frames(self, latent_frames: int) -> int:
        """Of a clip, whose first latent frame is one pixel frame."""
        return self.temporal * (latent_frames - 1) + 1


def latent_scale(folder: str) -> LatentScale | None:
    """Of the autoencoder in a diffusers folder; None where there is none."""
    if not (Path(folder or "/nonexistent") / "config.json").is_file():
        return None
    with torch.device("meta"):  # a configuration may leave out what diffusers has as defaults
        config = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder)).config
    return LatentScale(config["z_dim"], config["scale_factor_spatial"], config["scale_factor_temporal"])


def wan_vae(channels: int) -> tuple[VaeCosts, int]:
    """What Wan's autoencoder with so many latent channels costs, and the pixels along a side of its latents."""
    return (WAN22_VAE, 16) if channels == WAN22_CHANNELS else (WAN_VAE, 8)
