"""What turns a pipeline's latents into frames, and a source video into latents: Wan's VAE, or TAEHV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from ..errors import InputError
from ..models.pixel_stream import FrameEncoder
from ..models.streaming_encode import WanStreamEncoder
from ..models.streaming_vae import FrameDecoder, Tiling, WanStreamDecoder
from ..models.taehv import LATENT_CHANNELS, TinyDecoder, TinyStreamDecoder, load_taehv
from ..models.taehv_encoder import TinyEncoder, TinyStreamEncoder, load_taehv_encoder
from ..planning.settings import Decoder


@dataclass
class FrameCoders:
    """Choices of a pipeline. own: a decoder of the caller's. tiny, tiny_encoder: TAEHV's halves, where they are used.
    tiling: of Wan's VAE, where it decodes in tiles."""

    own: Callable[[], FrameDecoder] | None = None
    tiny: TinyDecoder | None = None
    tiny_encoder: TinyEncoder | None = None
    tiling: Tiling | None = None

    def set_decoder(self, decoder: str | Path | Callable[[], FrameDecoder]) -> None:
        if isinstance(decoder, (str, Path)):
            self.tiny, self.own = None if decoder == "wan" else load_taehv(decoder), None
        else:
            self.tiny, self.own = None, decoder

    def set_encoder(self, encoder: str | Path, vae: AutoencoderKLWan | None) -> None:
        """Raises InputError for TAEHV beside the VAE of another latent space."""
        channels = LATENT_CHANNELS if vae is None else vae.config["z_dim"]
        if encoder != "wan" and channels != LATENT_CHANNELS:
            expected = f"wan: TAEHV has Wan 2.1's {LATENT_CHANNELS} latent channels, and this model {channels}"
            raise InputError("encoder", f"found {encoder}, expected {expected}")
        self.tiny_encoder = None if encoder == "wan" else load_taehv_encoder(encoder)

    def decoder(self, vae: AutoencoderKLWan, device: torch.device, tiles: bool) -> FrameDecoder:
        """At the beginning of a clip. tiles: the preset's wish for Wan's VAE."""
        if self.own is not None:
            return self.own()
        if self.tiny is not None:
            return TinyStreamDecoder(self.tiny.to(device))
        return WanStreamDecoder(vae, self.tiling or (Tiling(caches="cpu") if tiles else None))

    def encoder(self, vae: AutoencoderKLWan, device: torch.device) -> FrameEncoder:
        """At the beginning of a source video."""
        return WanStreamEncoder(vae) if self.tiny_encoder is None else TinyStreamEncoder(self.tiny_encoder.to(device))

    def decoder_kind(self, tiles: bool) -> Decoder:
        """As a memory plan calls it."""
        if self.own is not None:
            return "none"
        if self.tiny is not None:
            return "taehv"
        return "tiles" if self.tiling or tiles else "whole"
