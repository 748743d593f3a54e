"""Streaming video writer, and readers of images and videos as pixels.

A video is written to a hidden file beside its target, as a fragmented mp4 that is playable up to where it ends, and
moved to the target when it is closed. Whatever ends the run (the last frame, an exception, Ctrl-C, a full disk), the
frames written so far are a playable file. An incomplete video never replaces an older one; it is saved beside it as
NAME.partial.mp4. Only a kill of the process (SIGKILL) leaves the hidden file behind, itself playable, until the next
video of the same name is written.

Layout: pixels [B, 3, T, H, W] or, for one clip, [3, T, H, W], float in [-1, 1].
"""

import itertools
import logging
import math
import subprocess
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO

import imageio_ffmpeg
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import FPS
from .atomic import check_writable, replace_file
from .images import open_image, uint8_pixels
from .partial_files import new_partial
from .video_frames import video_frames

log = logging.getLogger(__name__)

MAX_VIDEO_BYTES = 2**33  # of a video that is read whole, as float pixels
PARTIAL_ENDING = ".partial.mp4"
H264 = [
    # A fast preset: the encoder shares the processor with the generation that feeds it.
    *["-c:v", "libx264", "-preset", "veryfast", "-crf", "17", "-pix_fmt", "yuv420p"],
    # Explicit colour conversion, so that no player has to guess it.
    *["-vf", "scale=out_color_matrix=bt709:out_range=tv"],
    *["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"],
]


class VideoWriteError(OSError):
    """Writing stopped early. The message names the file, how many frames were written, and which of them were kept."""

    __module__ = "salt.io.video"


class VideoWriter:
    """Context manager that writes an H.264 mp4 (yuv420p, playable everywhere) frame by frame.

    The first frame determines the size. Odd sides are made even, as yuv420p requires, by repeating the last row or
    column. When an exception (also Ctrl-C) ends the block, the frames written so far become the file. An existing
    target is replaced only by a complete video; otherwise the incomplete one is saved beside it, with a warning.

    path: the target, ending in .mp4; a symbolic link stays, and its target is written. fps: frames per second.
    Raises ValueError for another suffix or fps, OSError (naming the path) if the target cannot be written.
    """

    def __init__(self, path: str | Path, fps: float = FPS):
        if not fps > 0 or not math.isfinite(fps):
            raise ValueError(f"frames per second must be positive, got {fps}")
        self.path = check_writable(path, ".mp4")
        self.fps = fps
        self.frames = 0
        self._size: tuple[int, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._partial = new_partial(self.path, PARTIAL_ENDING)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            if self._process is not None:
                self._finish(incomplete=True)
        except VideoWriteError as failure:  # must not hide the exception that ended the block
            warnings.warn(str(failure), stacklevel=2)

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append T frames: float [3, T, H, W] in [-1, 1], or uint8 [T, H, W, 3].

        Raises ValueError for another layout or another size than the first frame's, VideoWriteError when the encoder
        stops (a full disk); the frames encoded until then are kept.
        """
        pictures = _to_uint8(frames)
        size = (pictures.shape[2], pictures.shape[1])
        if self._size is None:
            self._size = size
        elif size != self._size:
            raise ValueError(f"{self.path}: frames are {self._size[0]}x{self._size[1]}, got {size[0]}x{size[1]}")
        pictures = even_sides(pictures)
        if self._process is None:
            self._process = self._start(pictures.shape[2], pictures.shape[1])
        pipe = self._process.stdin
        assert pipe is not None
        try:
            for picture in pictures:
                pipe.write(picture.tobytes())
                self.frames += 1
        except OSError as error:
            self._finish(cause=error)

    def close(self) -> None:
        """Finish the file and move it to the target. Raises VideoWriteError if that fails or no frame was written."""
        if self._process is not None:
            self._finish()
        elif self.frames == 0:
            raise VideoWriteError(f"{self.path}: no frame was written")

    def _start(self, width: int, height: int) -> "subprocess.Popen[bytes]":
        self._log = tempfile.TemporaryFile()
        return ffmpeg(
            *raw_input(width, height, self.fps),
            *H264,
            # Fragments of half a second: an ordinary mp4 has its index at the end and cannot be played without it.
            *["-movflags", "+empty_moov+default_base_moof", "-frag_duration", "500000", "-flush_packets", "1"],
            *["-f", "mp4", str(self._partial)],
            log=self._log,
        )

    def _finish(self, cause: OSError | None = None, incomplete: bool = False) -> None:
        """Wait for the encoder, then move its file to the target. Raises VideoWriteError if the encoder failed.

        incomplete: an exception ended the block, so the video must not replace an older one.
        """
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.close()
        except OSError as error:
            cause = cause or error
        failed = process.wait() != 0 or cause is not None
        self._log.seek(0)
        encoder_log = self._log.read().decode(errors="replace")
        self._log.close()
        if not failed:
            add_index(self._partial, self._partial.with_name(f"{self._partial.name}.indexed.mp4"))
            target = self._incomplete_target() if incomplete else self.path
            replace_file(self._partial, target)
            if target != self.path:
                log.warning(
                    "%s: not replaced; the first %d frames of the new one are in %s", self.path, self.frames, target
                )
            return
        outcome = "none could be kept"
        if kept := _playable_frames(self._partial):
            target = self._incomplete_target()
            self._partial.replace(target)  # not flushed: the disk may be full
            where = "" if target == self.path else f" in {target}; the older video is unchanged"
            outcome = f"the first {kept} are kept and can be played{where}"
        else:
            self._partial.unlink(missing_ok=True)
        reason = failure_reason(encoder_log, cause)
        raise VideoWriteError(
            f"{self.path}: writing stopped after {self.frames} frames ({reason}); {outcome}"
        ) from cause

    def _incomplete_target(self) -> Path:
        """The target of an incomplete video: a free name beside an older video, if there is one."""
        if not self.path.exists():
            return self.path
        names = (self.path.with_suffix(f".partial{n or ''}.mp4") for n in itertools.count())
        return next(name for name in names if not name.exists())


def raw_input(width: int, height: int, fps: float) -> list[str]:
    """Options for frames that are written to ffmpeg's input as bytes, uint8 [T, H, W, 3]."""
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]


def even_sides(pictures: np.ndarray) -> np.ndarray:
    """Pictures [T, H, W, 3] with even sides, as yuv420p requires: the last row or column is repeated."""
    _, height, width, _ = pictures.shape
    return np.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def ffmpeg(*arguments: str, log: IO[bytes] | int, output: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
    """ffmpeg, reading its input from a pipe; errors go to `log`, the standard output to `output`."""
    return subprocess.Popen(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-hide_banner", "-loglevel", "error", *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=log,
        # Ctrl-C is sent to the whole process group; the encoder must survive it to finish the file.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def add_index(path: Path, hidden: Path) -> None:
    """Remux a fragmented mp4 with an index, which seeks better, by way of a hidden file beside it. If that fails, the
    fragmented one stays."""
    copy = ffmpeg(
        *["-i", str(path), "-c", "copy", "-movflags", "+faststart", "-f", "mp4", str(hidden)], log=subprocess.DEVNULL
    )
    copy.communicate()
    if copy.returncode == 0:
        replace_file(hidden, path)
    else:
        hidden.unlink(missing_ok=True)


def _playable_frames(path: Path) -> int:
    """Number of frames that can be read back from a video that may be damaged."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(path)[0] or 0
    except RuntimeError:  # ffmpeg found no video in it
        return 0


def failure_reason(encoder_log: str, cause: OSError | None) -> str:
    """Why the encoder stopped: a full disk if its log mentions one, else the log's last line."""
    lines = encoder_log.strip().splitlines()
    for line in lines:
        if "No space left on device" in line:
            return "No space left on device"
    if lines:
        return lines[-1]
    return (cause.strerror if cause is not None else None) or "the encoder ended early"


def to_uint8(pixels_3THW: Tensor) -> Tensor:
    """Pixels [3, T, H, W] in [-1, 1] -> uint8 [T, H, W, 3] on their device."""
    scaled = ((pixels_3THW.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(1, 2, 3, 0)


def _to_uint8(frames: Tensor | np.ndarray) -> np.ndarray:
    """Float [3, T, H, W] in [-1, 1] or uint8 [T, H, W, 3] -> uint8 [T, H, W, 3]."""
    tensor = torch.as_tensor(frames)
    if tensor.ndim == 4 and tensor.dtype == torch.uint8 and tensor.shape[3] == 3:
        return tensor.cpu().numpy()
    if tensor.ndim == 4 and tensor.is_floating_point() and tensor.shape[0] == 3:
        return to_uint8(tensor).cpu().numpy()
    raise ValueError(
        f"expected float pixels [3, T, H, W] or uint8 [T, H, W, 3], got {tensor.dtype} {list(tensor.shape)}"
    )


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read an image file as pixels [1, 3, 1, H, W] in [-1, 1], float32, with its EXIF rotation applied.

    size: (H, W) in pixels, see `fit`. Raises OSError if there is no such file, ValueError if it is not an image.
    """
    pixels = open_image(path)
    return fit(pixels, size) if size is not None else pixels


def read_video(
    path: str | Path,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    *,
    start: float = 0.0,
    longest: int | None = None,
    fps: int = FPS,
) -> Tensor:
    """Read a video file as pixels [1, 3, T, H, W] in [-1, 1], float32, at `fps` frames per second.

    A file of another rate is resampled by time. size: (H, W) in pixels, see `fit`; frames are resized as they are read.
    frames: read only so many, from `start` seconds on. longest: refuse a video of more frames; without it and `frames`,
    one of more than MAX_VIDEO_BYTES. Raises OSError if there is no such file, ValueError if it is not a video, has
    fewer than `frames` or is too long; its length is looked at before it is read.
    """
    pieces = []
    with video_frames(path, start, fps) as (info, pictures):
        height, width = size or (info.height, info.width)
        limit = longest or MAX_VIDEO_BYTES // (12 * height * width)
        if frames is None and info.frames > limit:
            raise ValueError(_too_long(path, info.frames, limit, fps))
        for picture in pictures:
            pixels = uint8_pixels(picture[None])
            pieces.append(fit(pixels, size) if size is not None else pixels)
            if len(pieces) == frames:
                break
            if frames is None and len(pieces) > limit:  # the file does not say its length, or says it wrong
                raise ValueError(_too_long(path, max(len(pieces), info.frames), limit, fps))
    if len(pieces) < (frames or 1):
        at = f" from {start:g} s on" if start else ""
        raise ValueError(f"{path}: has {len(pieces)} frames at {fps} a second{at}, expected at least {frames or 1}")
    if 0 < info.fps < fps - 0.5:
        log.warning("%s: found %g frames a second; frames are repeated to make %d", path, info.fps, fps)
    return torch.cat(pieces, dim=2)


def _too_long(path: str | Path, found: int, limit: int, fps: int) -> str:
    return (
        f"{path}: found {found / fps:.4g} s of video ({found} frames at {fps} a second), expected at most "
        f"{limit / fps:.4g} s ({limit} frames); cut it, or read a part of it"
    )


def fit(pixels_B3THW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize pixels [B, 3, T, H, W] to cover `size` (H, W) at their aspect ratio, and crop the centre."""
    batch, _, time, height, width = pixels_B3THW.shape
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    x = pixels_B3THW.transpose(1, 2).flatten(0, 1)
    if scaled != (height, width):
        x = F.interpolate(x, scaled, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    x = x[..., top : top + size[0], left : left + size[1]]
    return x.unflatten(0, (batch, time)).transpose(1, 2).contiguous()
