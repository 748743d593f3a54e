"""A source video of a call as pixels: a file, frames or a tensor, at the models' rate and the clip's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..io.images import DAMAGED, IMAGE_SUFFIXES, image_pixels, uint8_pixels
from ..io.video import fit
from ..io.video_frames import video_frames, video_info
from ..spec import FPS
from .start_image import LARGEST_PIXEL

SourceVideo = str | Path | np.ndarray | Tensor | Sequence[Image.Image]
LAYOUTS = (
    "a path, PIL images, uint8 frames [T, H, W, 3] or [B, T, H, W, 3] (or floats in [0, 1] as an array), or a "
    "float tensor [3, T, H, W] or [B, 3, T, H, W] in [-1, 1]"
)


@dataclass(frozen=True)
class OpenVideo:
    """frames: pixel frames at the models' rate. rows: clips in it. pixels: [rows, 3, 1, H, W] in [-1, 1], frame by
    frame, scaled and cut to a size (H, W); each call begins anew. fps: the models'."""

    frames: int
    rows: int
    pixels: Callable[[tuple[int, int]], Iterator[Tensor]]
    fps: int = FPS

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def open_video(video: SourceVideo, fps: int = FPS) -> OpenVideo:
    """Reads no frame of a file but to count those of one that does not say its length.

    Files are resampled to `fps` frames a second by time; frames that are passed in are taken to be at that rate. They
    are scaled to cover the clip's size and cut to it in the middle. Errors: OSError and ValueError naming the file;
    InputError for anything else that cannot be a video.
    """
    if isinstance(video, (str, Path)):
        path = Path(video)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError("video", f"found the picture {path}, expected a video; a picture starts a clip as `image`")
        frames = video_info(path, fps).frames or sum(1 for _ in _file_frames(path, fps, None))
        return OpenVideo(frames, 1, partial(_file_frames, path, fps), fps)
    pixels = _pixels_of(video)

    def fitted(size: tuple[int, int]) -> Iterator[Tensor]:
        return (fit(_in_range(frame), size) for frame in pixels.split(1, dim=2))

    return OpenVideo(pixels.shape[2], pixels.shape[0], fitted, fps)


def _file_frames(path: Path, fps: int, size: tuple[int, int] | None) -> Iterator[Tensor]:
    with video_frames(path, fps=fps) as (_, pictures):
        for picture in pictures:
            pixels = uint8_pixels(picture[None])
            yield pixels if size is None else fit(pixels, size)


def _pixels_of(video: np.ndarray | Tensor | Sequence[Image.Image]) -> Tensor:
    """[B, 3, T, H, W]: floats in [-1, 1], or uint8."""
    if isinstance(video, np.ndarray):
        frames = torch.from_numpy(video)
        if frames.is_floating_point():
            _check_values(frames, 0, 1)
            frames = frames.float() * 2 - 1
        return _channels_second(frames)
    if isinstance(video, Tensor):
        if video.dtype == torch.uint8:
            return _channels_second(video)
        pixels = video[None] if video.ndim == 4 else video
        if not video.is_floating_point() or pixels.ndim != 5 or pixels.shape[1] != 3 or 0 in pixels.shape:
            raise _wrong(video)
        _check_values(pixels, -LARGEST_PIXEL, LARGEST_PIXEL)
        return pixels
    if isinstance(video, Sequence) and video and all(isinstance(x, Image.Image) for x in video):
        if len({x.size for x in video}) != 1:
            raise InputError("video", "found pictures of different sizes, expected one size")
        try:
            return torch.cat([image_pixels(x) for x in video], dim=2)
        except DAMAGED as error:  # Pillow reads a file when its pixels are first asked for
            raise InputError("video", f"cannot be used ({error})") from error
    raise InputError("video", f"found {type(video).__name__}, expected {LAYOUTS}")


def _channels_second(frames: Tensor) -> Tensor:
    batched = frames[None] if frames.ndim == 4 else frames
    if batched.ndim != 5 or batched.shape[4] != 3 or 0 in batched.shape:
        raise _wrong(frames)
    if not batched.is_floating_point() and batched.dtype != torch.uint8:
        raise _wrong(frames)
    return batched.permute(0, 4, 1, 2, 3)


def _in_range(frame: Tensor) -> Tensor:
    return frame.float().div(127.5).sub(1) if frame.dtype == torch.uint8 else frame.float()


def _check_values(pixels: Tensor, low: float, high: float) -> None:
    least, most = (float(x) for x in pixels.aminmax()) if pixels.numel() else (0.0, 0.0)
    if not (low - 0.01 <= least and most <= high + 0.01):  # which NaN is not either
        raise InputError("video", f"found values from {least:g} to {most:g}, expected {LAYOUTS}")


def _wrong(found: Tensor) -> InputError:
    kind = str(found.dtype).removeprefix("torch.")
    return InputError("video", f"found {kind} of shape {list(found.shape)}, expected {LAYOUTS}")


def clip_frames(video: OpenVideo, wanted: int | None, field: str, block: int, first: int, temporal_scale: int) -> int:
    """Pixel frames of a clip from a video: whole blocks that it fills, as many as were asked for, all by default.

    wanted: pixel frames asked for by argument `field`; block, first: latent frames of a block, and of a shorter first
    one (0 for none). Raises InputError for a video that is shorter than what is asked for, or than a block.
    """

    def pixels(blocks: int) -> int:
        return (first + blocks * block - 1) * temporal_scale + 1

    least = 0 if first else 1
    fills = math.floor(((video.frames - 1) // temporal_scale + 1 - first) / block)
    if fills < least:
        raise InputError(
            "video", f"found {video.frames} frames at {video.fps} a second, expected at least {pixels(least)}"
        )
    if wanted is None:
        return pixels(fills)
    if wanted > video.frames:
        asked = f"{wanted} frames" if field == "num_frames" else f"{wanted / video.fps:.4g} s"
        raise InputError(field, f"found {asked}, expected at most the video's {video.frames} ({video.seconds:.4g} s)")
    asked_blocks = math.ceil((((wanted - 1) / temporal_scale) + 1 - first) / block)
    return pixels(min(max(asked_blocks, least), fills))
