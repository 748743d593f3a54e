"""The image or video that a clip starts from, as a model's inputs.

A text-to-video model takes it as clean latents that go through context passes first; an image-to-video model as
channels beside the noise (Wan 2.1 I2V: 4 mask channels, 16 of the clip with only its start filled in) and as CLIP
embeddings of the first frame.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..errors import InputError
from ..io.images import DAMAGED, image_pixels
from ..io.video import fit, read_image, read_video
from ..io.video_frames import VIDEO_SUFFIXES, video_info
from ..memory import MemoryPolicy
from ..models.streaming_vae import encode_video
from ..spec import FPS

LARGEST_PIXEL = 2.0  # resizing may leave [-1, 1] a little; 0 to 255 is another scale
StartImage = str | Path | Image.Image | Tensor


def start_pixels(
    image: StartImage,
    size: tuple[int, int],
    batch: int,
    per_prompt: int = 1,
    longest: int | None = None,
    fps: int = FPS,
) -> Tensor:
    """Pixels [batch, 3, T, H, W] in [-1, 1] of a start, scaled and cut to `size` (H, W).

    image: an image or video file, a PIL image, or a tensor [3, H, W], [B, 3, H, W] or [B, 3, T, H, W] in [-1, 1].
    per_prompt: clips of every prompt; B is 1, `batch`, or the number of prompts. longest: frames of the clip; a video
    that does not fit in it is not read. fps: the models', at which a video is read.
    Errors: FileNotFoundError; ValueError for a file that is neither; InputError for what cannot be a start.
    """
    if isinstance(image, (str, Path)):
        pixels = _file_pixels(Path(image), size, longest, fps)
    elif isinstance(image, Image.Image):
        try:
            pixels = fit(image_pixels(image), size)
        except DAMAGED as error:  # Pillow reads a file when its pixels are first asked for
            raise InputError("image", f"cannot be used ({error})") from error
    else:
        pixels = fit(_tensor_pixels(image), size)
    return repeat_rows(pixels, "image", batch, per_prompt)


def held_pixels(pixels_B3THW: Tensor, policy: MemoryPolicy, temporal_scale: int) -> Tensor:
    """A start image as a still of as many latent frames as a memory is rebuilt from; anything else as it is."""
    if not policy.rebuilt or pixels_B3THW.shape[2] > 1:
        return pixels_B3THW
    return pixels_B3THW.expand(-1, -1, 1 + temporal_scale * ((policy.window or 1) - 1), -1, -1)


def _file_pixels(path: Path, size: tuple[int, int], longest: int | None, fps: int) -> Tensor:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return read_image(path, size)
    found = video_info(path, fps).frames
    if longest is not None and found > longest:
        raise InputError(
            "image",
            f"found a start of {found / fps:.4g} s in {path}, expected less than the clip's {longest / fps:g} s",
        )
    pixels = read_video(path, size, longest=longest, fps=fps)
    return pixels[:, :, : (pixels.shape[2] - 1) // 4 * 4 + 1]


def _tensor_pixels(image: Tensor) -> Tensor:
    """A tensor of any of the accepted layouts as [B, 3, T, H, W]. Raises InputError for any other."""
    if not isinstance(image, Tensor):
        raise InputError("image", f"found {type(image).__name__}, expected a path, a PIL image or a tensor")
    pixels = image[None] if image.ndim == 3 else image
    pixels = pixels[:, :, None] if pixels.ndim == 4 else pixels
    if pixels.ndim != 5 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise InputError("image", f"found shape {list(image.shape)}, expected [3, H, W] or [B, 3, T, H, W]")
    largest = pixels.abs().amax().item() if pixels.is_floating_point() else math.nan
    if not largest <= LARGEST_PIXEL:  # which NaN is not either
        found = f"values up to {largest:g}" if pixels.is_floating_point() else str(pixels.dtype).removeprefix("torch.")
        raise InputError("image", f"found {found}, expected floats in [-1, 1]")
    return pixels


def repeat_rows(rows: Tensor, field: str, batch: int, per_prompt: int = 1) -> Tensor:
    """[R, ...] to [batch, ...]: one row for all clips, or one for each, or one for each prompt, which is repeated in
    place for its `per_prompt` clips. Raises InputError about `field` for another number of rows."""
    count = rows.shape[0]
    if count == batch:
        return rows
    if count == 1:
        return rows.expand(batch, *rows.shape[1:])
    if count * per_prompt != batch:
        raise InputError(field, f"found a batch of {count}, expected 1 or {batch // per_prompt}")
    return rows.repeat_interleave(per_prompt, dim=0)


def image_channels(vae: AutoencoderKLWan, pixels_B3THW: Tensor, frames: int) -> Tensor:
    """Wan 2.1 I2V's channels beside the noise, [B, 4 + C, F, h, w], for a clip of `frames` latent frames.

    4 mask channels, 1 where the start is, then the latents of the start followed by grey.
    Raises InputError when the start is longer than the clip.
    """
    scale = int(vae.config["scale_factor_temporal"])
    start = pixels_B3THW.shape[2]
    total = scale * (frames - 1) + 1
    if start > total:
        raise InputError("image", f"found a start of {start} frames, expected at most the clip's {total}")
    grey = pixels_B3THW.new_zeros(*pixels_B3THW.shape[:2], total - start, *pixels_B3THW.shape[3:])
    latents = encode_video(vae, torch.cat([pixels_B3THW, grey], dim=2))
    mask = latents.new_zeros(latents.shape[0], scale, *latents.shape[2:])
    mask[:, :, : (start - 1) // scale + 1] = 1
    return torch.cat([mask, latents], dim=1)


@torch.no_grad()
def image_embeddings(encoder: PreTrainedModel, processor: BaseImageProcessor, pixels_B3THW: Tensor) -> Tensor:
    """CLIP embeddings of the first frame, [B, N, D]: the last hidden layer but one, as Wan 2.1 I2V was trained on."""
    first = ((pixels_B3THW[:, :, 0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in first]
    inputs = processor(images=images, return_tensors="pt").to(encoder.device, encoder.dtype)
    return encoder(**inputs, output_hidden_states=True).hidden_states[-2]
