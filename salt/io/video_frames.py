"""Frames of video files at the models' rate, by time: a motion keeps its speed whatever rate it was filmed at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from ..spec import FPS
from .atomic import require_file
from .images import MAX_IMAGE_PIXELS

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
# What imageio-ffmpeg raises for files that ffmpeg cannot read.
UNREADABLE = (OSError, RuntimeError, KeyError, IndexError, TypeError, ValueError)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself. fps, seconds: 0 where it does not say. width, height: as it is shown. rate: the
    models', at which its frames are read."""

    width: int
    height: int
    fps: float
    seconds: float
    rate: int = FPS

    @property
    def frames(self) -> int:
        """About how many frames it has at the models' rate; 0 where it does not say."""
        return self._frames_at(self.rate)

    @property
    def own_frames(self) -> int:
        """The same at its own rate, as it was written."""
        return self._frames_at(self.fps)

    def _frames_at(self, fps: float) -> int:
        return int(self.seconds * fps + 0.25)  # ffmpeg rounds the seconds to hundredths


def video_info(path: str | Path, fps: int = FPS) -> VideoInfo:
    """Reads no frame. fps: the models'. Raises OSError if there is no such file, ValueError if it is not a video."""
    with video_frames(path, fps=fps) as (info, _):
        return info


@contextmanager
def video_frames(
    path: str | Path, start: float = 0.0, fps: int = FPS
) -> Iterator[tuple[VideoInfo, Iterator[np.ndarray]]]:
    """A video's description and its frames, uint8 [H, W, 3], `fps` a second, from `start` seconds on.

    Frames are decoded as they are taken, and the file is closed with the block. A file of another rate is resampled by
    the times of its frames. Raises OSError if there is no such file, ValueError if it is not a video.
    """
    path = require_file(path, "a video")
    seek = ["-ss", f"{start:.6f}"] if start else []
    reader = imageio_ffmpeg.read_frames(path, input_params=seek, output_params=["-vf", f"fps={fps}"])
    try:
        try:
            meta = next(reader)
            width, height = meta["size"]
            info = VideoInfo(width, height, float(meta["fps"] or 0), float(meta["duration"] or 0), fps)
        except UNREADABLE as error:
            raise ValueError(f"{path}: cannot be read as a video") from error
        if width * height > MAX_IMAGE_PIXELS:
            raise ValueError(
                f"{path}: found frames of {width}x{height}, expected at most {MAX_IMAGE_PIXELS // 10**6} million pixels"
            )
        yield info, _frames(reader, path, info)
    finally:
        reader.close()


def _frames(reader: Iterator[bytes], path: Path, info: VideoInfo) -> Iterator[np.ndarray]:
    while True:
        try:
            raw = next(reader, None)
        except UNREADABLE as error:
            raise ValueError(f"{path}: cannot be read as a video") from error
        if raw is None:
            return
        yield np.frombuffer(raw, np.uint8).reshape(info.height, info.width, 3)
