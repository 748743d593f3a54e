"""Streaming encode with Wan's VAE: chunks of pixel frames in, latent frames out, each as soon as its pixels are there.

The latents of all calls, concatenated, are those of one encode of the whole clip, and memory does not grow with it:
Wan's VAE is causal, and all that it needs of the past is a cache of two frames per convolution. The cache belongs to
the encoder, not to the VAE, so that many streams may share one VAE.

Layouts: pixels [B, 3, T, H, W] in [-1, 1], latents [B, C, F, H, W] in normalised model space, float32.
The first latent frame of a clip is one pixel frame, every later one is `temporal_scale` of them.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify
from torch import Tensor

from ..acceleration.transfers import to_device, to_main_memory
from .pixel_stream import PixelStream
from .streaming_vae import latent_statistics, onload


class WanStreamEncoder:
    """Streaming encode with diffusers' `AutoencoderKLWan`: successive calls of `encode` continue the clip.

    The concatenated output equals `salt.encode_video` of the whole clip (the posterior's mode, normalised); also for
    the VAE of Wan 2.2, which sees patches of 2x2 pixels. A `FrameEncoder`. Pixels are not checked to lie in [-1, 1].
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.spatial_scale = int(vae.config["scale_factor_spatial"])
        self.temporal_scale = int(vae.config["scale_factor_temporal"])
        self._patch = int(vae.config.get("patch_size") or 1)
        self.reset()

    def reset(self) -> None:
        self._stream = PixelStream(self.spatial_scale, self.temporal_scale)
        entries = sum(isinstance(module, WanCausalConv3d) for module in self.vae.encoder.modules())
        self._cache: list[Tensor | str | None] = [None] * entries
        self._statistics: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def encode(self, pixels_B3THW: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [-1, 1] -> normalised latents [B, C, F, H/s, W/s], float32, on the VAE's device.

        T may be any number: pixel frames that do not fill a latent frame wait for the next call, so F may be 0. Raises
        ValueError when the shape is not that of the current clip.
        """
        groups = self._stream.groups(pixels_B3THW)
        device = onload(self.vae)
        if self._statistics is None:
            self._statistics = latent_statistics(self.vae, device)
            self._cache = [to_device(e, device) if isinstance(e, Tensor) else e for e in self._cache]  # of a fork
        mean, std = self._statistics
        batch, _, _, height, width = pixels_B3THW.shape
        size = (height // self.spatial_scale, width // self.spatial_scale)
        frames = [torch.empty(batch, mean.shape[1], 0, *size, device=device)]
        for group in groups:
            pixels = patchify(to_device(group, device).to(self.vae.dtype), self._patch)
            # diffusers' encoder indexes the cache by a counter and replaces its entries.
            moments = self.vae.quant_conv(self.vae.encoder(pixels, feat_cache=self._cache, feat_idx=[0]))
            frames.append((moments[:, : mean.shape[1]].float() - mean) / std)
        return torch.cat(frames, dim=2)

    def fork(self) -> WanStreamEncoder:
        twin = WanStreamEncoder(self.vae)
        twin._stream = self._stream.copied()
        # Entries are replaced by the encoder, never written to.
        twin._cache = [to_main_memory(e) if isinstance(e, Tensor) else e for e in self._cache]
        return twin

    @property
    def nbytes(self) -> int:
        cached = sum(e.numel() * e.element_size() for e in self._cache if isinstance(e, Tensor))
        return cached + self._stream.nbytes
