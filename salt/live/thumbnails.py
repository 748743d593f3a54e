"""Small pictures of the blocks of all branches, for a strip that shows where one can go back to."""

from __future__ import annotations

import io
import threading
from bisect import bisect_right

import numpy as np
from PIL import Image

MOST = 2048  # of all branches; beyond them every second of the older half is dropped
LONGEST_SIDE = 160  # pixels


class Thumbnails:
    """JPEG pictures by branch and pixel frame. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: dict[int, list[int]] = {}  # of every branch, rising
        self._pictures: dict[tuple[int, int], bytes] = {}

    def add(self, branch: int, frame: int, picture: np.ndarray) -> None:
        """picture: uint8 [H, W, 3], the first of a block."""
        made = jpeg(picture)
        with self._lock:
            if (branch, frame) not in self._pictures:
                self._frames.setdefault(branch, []).append(frame)
            self._pictures[branch, frame] = made
            if len(self._pictures) > MOST:
                self._thin()

    def get(self, branch: int, frame: int) -> bytes | None:
        """The latest at `frame` or before."""
        with self._lock:
            frames = self._frames.get(branch, [])
            at = bisect_right(frames, frame)
            return self._pictures[branch, frames[at - 1]] if at else None

    def cut(self, branch: int, frame: int) -> None:
        """Drop those at `frame` and later: the branch was rewound."""
        with self._lock:
            frames = self._frames.get(branch, [])
            for gone in frames[bisect_right(frames, frame - 1) :]:
                del self._pictures[branch, gone]
            self._frames[branch] = frames[: bisect_right(frames, frame - 1)]

    def fork(self, parent: int, branch: int, frame: int) -> None:
        """A new branch that shares its parent's pictures before `frame`."""
        with self._lock:
            shared = [f for f in self._frames.get(parent, []) if f < frame]
            self._frames[branch] = shared
            self._pictures |= {(branch, f): self._pictures[parent, f] for f in shared}

    def _thin(self) -> None:
        for branch, frames in self._frames.items():
            half = len(frames) // 2
            for gone in frames[1:half:2]:
                del self._pictures[branch, gone]
            self._frames[branch] = frames[:half:2] + frames[half:]


def jpeg(picture: np.ndarray) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    return out.getvalue()
