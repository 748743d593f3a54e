"""The video that a rollout or a live session changes: frames at the student's rate, their size, and their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.io.images import uint8_pixels
from ...salt.io.video import fit
from ...salt.io.video_frames import video_frames, video_info
from ...salt.live.video_feed import FilePictures, RepeatedPictures
from ...salt.models.pixel_stream import FrameEncoder
from ...salt.spec import StudentSpec
from ...salt.video_in.motion import Motion, PixelMotion
from ...salt.video_in.strength import SourceLatents, source_of
from ...salt.video_in.video_latents import VideoLatents
from .clip_size import FRAMES_PER_LATENT, frame_count, length_text
from .core_versions import whole_file

if TYPE_CHECKING:
    from comfy_api.latest import InputImpl

    SourceVideo = Tensor | InputImpl.VideoFromComponents | InputImpl.VideoFromFile  # an IMAGE or a VIDEO


@dataclass(frozen=True)
class SourceFrames:
    """Frames at a student's rate. count: about as many as there are. read: one after another from the beginning,
    [1, 3, 1, H, W] in [-1, 1]."""

    count: int
    read: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class SourceClip:
    """A video of `frames` latent frames, in whole blocks. pixels: its frames [1, 3, 1, H, W] in [-1, 1] from the
    beginning. batch: rows of the latents. note: on its length.

    latents: [batch, C, frames, h, w], normalised, in main memory, with the motion; None where they are encoded while
    blocks are made.
    """

    frames: int
    batch: int
    pixels: Callable[[], Iterator[Tensor]]
    note: str = ""
    latents: Tensor | None = None
    motion: Motion | None = None

    def encoded(self, encoder: FrameEncoder) -> SourceClip:
        """With all latents, so that the VAE need not take turns with the MODEL."""
        source, motion = self.opened(encoder, torch.device("cpu"))
        return replace(self, latents=torch.cat([source(i, 1) for i in range(self.frames)], dim=2), motion=motion)

    def opened(self, encoder: FrameEncoder | None, device: torch.device) -> tuple[SourceLatents, Motion]:
        """Latents from the beginning, and the motion of the video; encoded by `encoder` as they are asked for, where
        they are not there yet."""
        if self.latents is not None and self.motion is not None:
            return source_of(self.latents.to(device)), self.motion
        assert encoder is not None
        motion = PixelMotion(self.pixels())
        rows = (self.batch, -1, -1, -1, -1)
        return VideoLatents(encoder, motion, lambda x: x.to(device, torch.float32).expand(rows)), motion


def source_frames(video: SourceVideo, fps: int) -> SourceFrames:
    """A VIDEO is resampled by time, and a file read as it is needed; an IMAGE is taken to have that rate."""
    path = None if isinstance(video, Tensor) else whole_file(video)
    if path is not None:
        count = video_info(path, fps).frames or sum(1 for _ in _file_frames(path, fps))
        return SourceFrames(count, partial(_file_frames, path, fps))
    images = images_at(video, fps)
    return SourceFrames(len(images), lambda: (x[..., :3].mul(2).sub(1).movedim(-1, 0)[None, :, None] for x in images))


def source_pictures(video: SourceVideo, fps: int) -> RepeatedPictures:
    """The same for a live session, over and over."""
    path = None if isinstance(video, Tensor) else whole_file(video)
    if path is not None:
        return FilePictures(path, fps)
    images = images_at(video, fps)
    return RepeatedPictures(lambda: (x[..., :3].clamp(0, 1).mul(255).round().byte().cpu().numpy() for x in images))


def images_at(video: SourceVideo, fps: int) -> list[Tensor]:
    """Images [H, W, 3 or 4] in [0, 1], one for every frame; an image may be there several times."""
    if isinstance(video, Tensor):
        return list(video)
    components = video.get_components()
    images, rate = components.images, float(components.frame_rate)
    count = max(round(images.shape[0] * fps / rate), 1)
    return [images[min(int(i * rate / fps + 1e-6), images.shape[0] - 1)] for i in range(count)]


def _file_frames(path: Path, fps: int) -> Iterator[Tensor]:
    with video_frames(path, fps=fps) as (_, pictures):
        for picture in pictures:
            yield uint8_pixels(picture[None])


def source_clip(video: SourceVideo, size: tuple[int, int], batch: int, frames: int, spec: StudentSpec) -> SourceClip:
    """The first `frames` latent frames of a video, or the whole blocks that it fills if these are fewer.

    size: width and height in pixels. Raises InputError for a video shorter than a block.
    """
    source = source_frames(video, spec.fps)
    filled, first = (source.count - 1) // FRAMES_PER_LATENT + 1, spec.first_block
    whole = first + max(filled - first, 0) // spec.frames_per_block * spec.frames_per_block
    least = first or spec.frames_per_block
    if whole < least or filled < least:
        raise InputError("video", f"found {source.count} frames, expected at least {frame_count(least)}")
    used, note = frames, ""
    if whole < frames:
        used, note = whole, f"the clip is {length_text(whole, spec.fps)} long: whole blocks of the video"
    width, height = size
    return SourceClip(used, batch, lambda: (fit(pixels, (height, width)) for pixels in source.read()), note)
