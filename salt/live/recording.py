"""Recordings of branches as fragmented mp4: playable whatever ends the process, and cut back when a branch is."""

from __future__ import annotations

import itertools
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..io.atomic import check_free, check_writable
from ..io.fragmented_mp4 import Fragment, FragmentedEncoder
from .live_model import LiveModelInfo

COPY_BYTES = 2**20


@dataclass
class RecordedBranch:
    """path: its file. head: bytes before the first frame. ends: where every frame ends in the file.

    Any thread may read size, how many bytes of the file are whole frames, and cuts, how often it was cut back.
    """

    path: Path
    head: int = 0
    ends: array[int] = field(default_factory=lambda: array("q"))
    size: int = 0
    cuts: int = 0

    def offset(self, frame: int) -> int:
        """Where pixel frame `frame` begins in the file."""
        return self.ends[frame - 1] if frame else self.head

    def cut(self, frame: int) -> None:
        """Frames from `frame` on are about to be cut off."""
        self.cuts += frame < len(self.ends)
        self.head = self.head if frame else 0  # a beginning without frames does not play
        self.size = self.offset(frame)
        del self.ends[frame:]


class Recording:
    """The recording of the branch that a session is on. Branch 1 is written to `path`, branch N to NAME.branchN.mp4.

    A branch whose name is taken gets NAME.branchN-2.mp4. Not thread-safe, but `branch` may be read by any thread.
    Raises OSError for a path that cannot be written, and FileExistsError where a file is there: nothing is replaced.
    """

    def __init__(self, path: Path, info: LiveModelInfo) -> None:
        self.info = info
        self._first = check_writable(check_free(path, "recording"), ".mp4")
        self._branches = {1: RecordedBranch(self._first)}
        self._branch = self._branches[1]
        self._encoder: FragmentedEncoder | None = None
        self._file = self._first.open("xb")

    @property
    def path(self) -> Path:
        """Of the branch that is recorded now."""
        return self._branch.path

    @property
    def branch(self) -> RecordedBranch:
        """The branch that is recorded now."""
        return self._branch

    def write(self, frames: np.ndarray) -> None:
        """Append a block of frames, uint8 [T, H, W, 3]. Raises VideoWriteError where that fails."""
        if self._encoder is None:
            _, height, width, _ = frames.shape
            block_frames = self.info.frames_per_block * self.info.temporal_scale
            first = len(self._branch.ends)
            self._encoder = FragmentedEncoder(width, height, block_frames, self._append, self.info.fps, first)
        self._encoder.write(frames)

    def _append(self, fragment: Fragment) -> None:
        """Called by the encoder's thread."""
        branch, encoder = self._branch, self._encoder
        assert encoder is not None
        if not branch.head:
            self._file.write(encoder.init)
            branch.head = len(encoder.init)
        self._file.write(fragment.data)
        self._file.flush()
        branch.ends.append(branch.offset(len(branch.ends)) + len(fragment.data))
        branch.size = branch.ends[-1]

    def move_to(self, branch: int, parent: int | None, frame: int) -> None:
        """Go on at pixel frame `frame` of a branch; what it has after that is cut off. parent: of a new branch, whose
        frames before it are copied."""
        self._end_encoder()
        self._file.close()
        if parent is not None:
            self._branches[branch] = self._copy(self._branches[parent], branch, frame)
        self._branch = self._branches[branch]
        self._branch.cut(frame)
        self._file = self._branch.path.open("r+b")
        self._file.truncate(self._branch.offset(frame))
        self._file.seek(0, os.SEEK_END)

    def _copy(self, parent: RecordedBranch, branch: int, frame: int) -> RecordedBranch:
        path = self._first.with_name(f"{self._first.stem}.branch{branch}.mp4")
        left = parent.offset(frame) if frame else 0
        names = itertools.chain([path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2)))
        twin = RecordedBranch(
            next(p for p in names if not p.exists()), parent.head if frame else 0, parent.ends[:frame], left
        )
        with parent.path.open("rb") as source, twin.path.open("xb") as target:
            while left and (part := source.read(min(left, COPY_BYTES))):
                target.write(part)
                left -= len(part)
        return twin

    def _end_encoder(self) -> None:
        if self._encoder is not None:
            try:
                self._encoder.close()  # its last fragments are appended meanwhile
            finally:
                self._encoder = None

    def close(self) -> None:
        """Finish the file: whole frames only. Raises VideoWriteError where that fails; the frames before are kept."""
        try:
            self._end_encoder()
        finally:
            self._file.close()
            if self._branch.head:
                os.truncate(self._branch.path, self._branch.offset(len(self._branch.ends)))
