"""The video that *Salt Rollout* changes, as latents: frames at the models' rate, scaled and cut, encoded one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.spec import FPS, StudentSpec
from ...salt.video_in.motion import Motion, PixelMotion
from .clip_size import FRAMES_PER_LATENT, length_text
from .streaming_vae import ComfyStreamEncoder

if TYPE_CHECKING:
    from comfy.sd import VAE
    from comfy_api.latest import InputImpl


@dataclass(frozen=True)
class SourceClip:
    """latents: [batch, 16, F, H, W] of whole blocks, normalised, in main memory. motion: of the video. note: on its
    length."""

    latents: Tensor
    motion: Motion
    note: str = ""


def frames_of(video: Tensor | InputImpl.VideoFromComponents) -> Tensor:
    """Frames [T, H, W, 3] in [0, 1] at the models' rate, which an IMAGE is taken to have; a VIDEO is resampled."""
    if isinstance(video, Tensor):
        return video[..., :3]
    components = video.get_components()
    images, rate = components.images[..., :3], float(components.frame_rate)
    count = max(round(images.shape[0] * FPS / rate), 1)
    indices = [min(int(i * rate / FPS + 1e-6), images.shape[0] - 1) for i in range(count)]
    return images if indices == list(range(images.shape[0])) else images[indices]


def source_clip(
    vae: VAE | None, video: Tensor | InputImpl.VideoFromComponents, size: tuple[int, int], batch: int, frames: int,
    spec: StudentSpec,
) -> SourceClip:  # fmt: skip
    """The latents of the first `frames` latent frames of a video, or of the whole blocks that it fills if these are
    fewer. size: width and height in pixels. Raises InputError without a VAE, and for a video shorter than a block."""
    if vae is None:
        raise InputError("video", "needs Wan 2.1's VAE connected to vae")
    images = frames_of(video)
    filled, first = (images.shape[0] - 1) // FRAMES_PER_LATENT + 1, spec.first_block
    whole = first + max(filled - first, 0) // spec.frames_per_block * spec.frames_per_block
    least = first or spec.frames_per_block
    if whole < least or filled < least:
        expected = FRAMES_PER_LATENT * (least - 1) + 1
        raise InputError("video", f"found {images.shape[0]} frames, expected at least {expected}")
    used, note = frames, ""
    if whole < frames:
        used, note = whole, f"the clip is {length_text(whole)} long: whole blocks of the video"
    starts = range(0, FRAMES_PER_LATENT * (used - 1) + 1, FRAMES_PER_LATENT)
    motion = PixelMotion(_fitted(images[start : start + FRAMES_PER_LATENT], size) for start in starts)
    encoder = ComfyStreamEncoder(vae)
    latents = [encoder.encode(pixels) for pixels in motion]
    encoded = torch.cat(latents, dim=2)[:, :, :used].float().cpu()
    return SourceClip(encoded.expand(batch, -1, -1, -1, -1), motion, note)


def _fitted(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [T, H, W, 3] in [0, 1] -> pixels [1, 3, T, H, W] in [-1, 1], scaled to cover width and height, and cut."""
    import comfy.utils

    pixels = comfy.utils.common_upscale(images.movedim(-1, 1), *size, "bicubic", "center")
    return pixels.clamp(0, 1).mul(2).sub(1).movedim(0, 1)[None]
