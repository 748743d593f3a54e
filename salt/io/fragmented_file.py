"""A video file that is playable up to its end at any time, whatever ends the process: fragmented mp4, under its own
name from the first frame on."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from ..spec import FPS
from .atomic import check_writable
from .fragmented_mp4 import Fragment, FragmentedEncoder
from .partial_files import new_partial
from .video import VideoWriteError, add_index

log = logging.getLogger(__name__)


class FragmentedFile:
    """Context manager that writes an H.264 mp4 block by block. When the block of code ends, also by an exception, the
    encoder is closed and the file gets an index, for players that seek; a file without a frame is removed.

    block_frames: in a block, whose first is a key frame; the first block may have another length.
    Raises ValueError for another ending than .mp4, FileExistsError where a file is there (nothing is replaced), OSError
    naming the path where it cannot be written.
    """

    def __init__(self, path: Path, block_frames: int, fps: float = FPS) -> None:
        self.path, self.block_frames, self.fps = check_writable(path, ".mp4"), block_frames, fps
        self.frames = 0  # that are in the file
        self._encoder: FragmentedEncoder | None = None
        try:
            self._file = self.path.open("xb")
        except FileExistsError:
            raise FileExistsError(
                f"{path}: found a file, expected a free name for a new video; nothing was replaced"
            ) from None
        self._whole = 0  # bytes of whole frames

    def __enter__(self) -> FragmentedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except VideoWriteError as failure:
            if kind is None:
                raise
            log.warning("%s", failure)  # it must not hide the exception that ended the block

    def write(self, frames: np.ndarray) -> None:
        """Append a block, uint8 [T, H, W, 3]. Raises VideoWriteError where that fails; the frames before it stay."""
        if self._encoder is None:
            _, height, width, _ = frames.shape
            self._encoder = FragmentedEncoder(width, height, self.block_frames, self._append, self.fps)
        try:
            self._encoder.write(frames)
        except VideoWriteError as error:
            raise self._failure(error) from error

    def _append(self, fragment: Fragment) -> None:
        """Called by the encoder's thread."""
        encoder = self._encoder
        assert encoder is not None
        data = fragment.data if self._whole else encoder.init + fragment.data
        self._file.write(data)
        self._file.flush()
        self._whole += len(data)
        self.frames += 1

    def close(self) -> None:
        """Finish the file. Raises VideoWriteError where the encoder fails; the frames before that stay."""
        if self._file.closed:
            return
        try:
            if self._encoder is not None:
                self._encoder.close()
        except VideoWriteError as error:
            raise self._failure(error) from error
        finally:
            self._file.close()
            if self.frames:
                os.truncate(self.path, self._whole)  # a frame that a full disk has cut short
                add_index(self.path, new_partial(self.path, ".indexed.mp4"))
            else:
                self.path.unlink()

    def _failure(self, error: VideoWriteError) -> VideoWriteError:
        kept = f"the first {self.frames} are kept and can be played" if self.frames else "none could be kept"
        return VideoWriteError(f"{self.path}: {error}; {kept}")
