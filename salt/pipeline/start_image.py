"""The entrance for pictures: an image, or the beginning of a video, made into what a model can go on from.

A text-to-video student takes it as clean latents that go into its memory first; an image-to-video one as channels
beside the noise (Wan 2.1 I2V: 4 mask channels, 16 of the clip with only its start filled in) and CLIP's view of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor

from ..io.video import fit, read_image, read_video
from ..models.streaming_vae import encode_video

Picture = str | Path | Image.Image | Tensor
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def start_pixels(picture: Picture, size: tuple[int, int], batch: int) -> Tensor:
    """Pixels [batch, 3, T, H, W] in [-1, 1] of a start, scaled and cut to `size` (H, W).

    picture: an image or mp4 file, a PIL image, or a tensor [3, H, W], [B, 3, H, W] or [B, 3, T, H, W] in [-1, 1].
    Errors: FileNotFoundError; ValueError when it is no picture or its batch is neither 1 nor `batch`.
    """
    if isinstance(picture, (str, Path)):
        if Path(picture).suffix.lower() in (*STILLS, ""):
            pixels = read_image(picture, size)
        else:
            pixels = read_video(picture, size)
            pixels = pixels[:, :, : (pixels.shape[2] - 1) // 4 * 4 + 1]
    elif isinstance(picture, Image.Image):
        array = np.asarray(picture.convert("RGB")).copy()
        pixels = fit(torch.from_numpy(array).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1, size)
    else:
        pixels = picture[None] if picture.ndim == 3 else picture
        pixels = pixels[:, :, None] if pixels.ndim == 4 else pixels
        if pixels.ndim != 5 or pixels.shape[1] != 3:
            raise ValueError(f"image: found shape {list(picture.shape)}, expected [3, H, W] or [B, 3, T, H, W]")
        pixels = fit(pixels, size)
    if pixels.shape[0] not in (1, batch):
        raise ValueError(f"image: found a batch of {pixels.shape[0]}, expected 1 or {batch}")
    return pixels.expand(batch, -1, -1, -1, -1)


def image_channels(vae: AutoencoderKLWan, pixels_B3THW: Tensor, frames: int) -> Tensor:
    """Wan 2.1 I2V's channels beside the noise, [B, 4 + C, F, h, w], for a clip of `frames` latent frames.

    4 mask channels, 1 where the start is given, then the latents of the start followed by grey.
    Raises ValueError when the start is longer than the clip.
    """
    scale = int(vae.config["scale_factor_temporal"])
    given = pixels_B3THW.shape[2]
    total = scale * (frames - 1) + 1
    if given > total:
        raise ValueError(f"image: found a start of {given} frames, expected at most the clip's {total}")
    grey = pixels_B3THW.new_zeros(*pixels_B3THW.shape[:2], total - given, *pixels_B3THW.shape[3:])
    latents = encode_video(vae, torch.cat([pixels_B3THW, grey], dim=2))
    mask = latents.new_zeros(latents.shape[0], scale, *latents.shape[2:])
    mask[:, :, : (given - 1) // scale + 1] = 1
    return torch.cat([mask, latents], dim=1)


@torch.no_grad()
def image_embeddings(encoder: Any, processor: Any, pixels_B3THW: Tensor) -> Tensor:
    """CLIP's view of the first frame, [B, N, D]: the last hidden layer but one, as Wan 2.1 I2V was trained on."""
    first = ((pixels_B3THW[:, :, 0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in first]
    inputs = processor(images=pictures, return_tensors="pt").to(encoder.device, encoder.dtype)
    return encoder(**inputs, output_hidden_states=True).hidden_states[-2]
