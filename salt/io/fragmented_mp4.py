"""H.264 in fragmented mp4, frame by frame: what is encoded so far can be played, sent on, and cut back to a block.

ffmpeg encodes without delay and writes a fragment for every frame; decode times and sequence numbers are made to
continue those of an earlier encoder, so that the fragments of several encoders are one video. Frames are uint8
[T, H, W, 3].
"""

from __future__ import annotations

import math
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from ..spec import FPS
from .video import H264, VideoWriteError, even_sides, failure_reason, ffmpeg, raw_input

FRAME_TICKS = 1000  # of the track's clock, in a frame
MAX_BOX_BYTES = 2**28


@dataclass(frozen=True)
class Fragment:
    """One frame as mp4 boxes (moof and mdat). frame: its number in the video. key: whether a player can begin here."""

    data: bytes
    frame: int
    key: bool


class FragmentedEncoder:
    """Encodes blocks of frames to fragments, which are handed to `on_fragment` by a thread of the encoder, in order.

    width, height: of the frames; odd sides are made even. block_frames: in a block, whose first is a key frame; the
    first block may have another length. first_frame: number of the first frame in the video, for an encoder that goes
    on where another has ended. `init` is the video's beginning (ftyp and moov), there before the first fragment; it is
    the same for all encoders of one size and rate.
    An error of `on_fragment` (OSError) ends the encoder, and is raised by the next call as VideoWriteError.
    """

    def __init__(
        self,
        width: int,
        height: int,
        block_frames: int,
        on_fragment: Callable[[Fragment], None],
        fps: float = FPS,
        first_frame: int = 0,
    ) -> None:
        if not fps > 0 or not math.isfinite(fps):
            raise ValueError(f"frames per second must be positive, got {fps}")
        self.size, self.fps, self.block_frames, self.first_frame = (width, height), fps, block_frames, first_frame
        self.on_fragment = on_fragment
        self.init = b""
        self.frames = 0
        self._first_block = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | ValueError | None = None

    def write(self, frames: np.ndarray) -> None:
        """Encode a block. Raises ValueError for frames of another size, VideoWriteError when the encoder has failed."""
        if frames.ndim != 4 or frames.dtype != np.uint8 or (frames.shape[2], frames.shape[1]) != self.size:
            expected = f"[T, {self.size[1]}, {self.size[0]}, 3]"
            raise ValueError(f"expected uint8 frames {expected}, got {frames.dtype} {list(frames.shape)}")
        pictures = even_sides(frames)
        if self._process is None:
            self._first_block = len(frames)
            self._start(pictures.shape[2], pictures.shape[1])
        self._check()
        assert self._process is not None and self._process.stdin is not None
        try:
            for picture in pictures:
                self._process.stdin.write(picture.tobytes())
            self._process.stdin.flush()
        except OSError as error:
            self.close()
            raise VideoWriteError(f"encoding stopped after {self.frames} frames ({error.strerror or error})") from error
        self.frames += len(frames)

    def close(self) -> None:
        """Encode what was written and end. Raises VideoWriteError when the encoder has failed."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
        except OSError:
            pass  # it has ended early, and its log says why
        self._reader.join()
        process.stdout.close()
        failed = process.wait() != 0
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")
        self._log.close()
        self._check()
        if failed:
            raise VideoWriteError(f"encoding stopped after {self.frames} frames ({failure_reason(log, None)})")

    def _check(self) -> None:
        if self._error is not None:
            raise VideoWriteError(f"writing stopped after {self.frames} frames ({self._error})") from self._error

    def _is_key(self, frame: int) -> bool:
        return frame == 0 or (frame >= self._first_block and (frame - self._first_block) % self.block_frames == 0)

    def _start(self, width: int, height: int) -> None:
        self._log = tempfile.TemporaryFile()
        first = self._first_block
        keys = f"expr:eq(n,0)+gte(n,{first})*eq(mod(n-{first},{self.block_frames}),0)"
        self._process = ffmpeg(
            *["-probesize", "32", "-analyzeduration", "0", *raw_input(width, height, self.fps)],
            *[*H264, "-tune", "zerolatency", "-force_key_frames", keys],
            *["-video_track_timescale", str(round(self.fps * FRAME_TICKS))],
            *["-movflags", "+empty_moov+default_base_moof+frag_every_frame", "-flush_packets", "1"],
            *["-f", "mp4", "-"],
            log=self._log,
            output=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="salt-fragments", daemon=True
        )
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        """Read ffmpeg's boxes to their end, also after an error, so that it never waits."""
        head, count = b"", 0
        for kind, box in boxes(stream):
            if self._error is not None or kind not in (b"ftyp", b"moov", b"moof", b"mdat"):
                continue
            head += box
            if kind == b"moov":
                self.init, head = head, b""
            elif kind == b"mdat":
                frame = self.first_frame + count
                try:
                    data = numbered(head, frame + 1, frame * FRAME_TICKS)
                    self.on_fragment(Fragment(data, frame, self._is_key(count)))
                except (OSError, ValueError) as error:
                    self._error = error
                head, count = b"", count + 1


def boxes(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The kind and bytes of every box of an mp4, up to one that is cut short."""
    while len(header := stream.read(8)) == 8:
        size, kind = struct.unpack(">I4s", header)
        if not 8 <= size <= MAX_BOX_BYTES:
            return
        body = stream.read(size - 8)
        if len(body) < size - 8:
            return
        yield kind, header + body


def numbered(fragment: bytes, sequence: int, decode_time: int) -> bytes:
    """A fragment with another sequence number and decode time. Raises ValueError for one without them."""
    data = bytearray(fragment)
    for path, value, layout in (
        ((b"moof", b"mfhd"), sequence, ">I"),
        ((b"moof", b"traf", b"tfdt"), decode_time, ">Q"),
    ):
        at = _find(data, path)
        version = data[at + 8]
        struct.pack_into(layout if path[-1] == b"mfhd" or version == 1 else ">I", data, at + 12, value)
    return bytes(data)


def _find(data: bytearray, path: tuple[bytes, ...]) -> int:
    """Where a box begins that lies in the boxes of `path`."""
    start, end = 0, len(data)
    for depth, wanted in enumerate(path):
        while start + 8 <= end:
            size, kind = struct.unpack_from(">I4s", data, start)
            if kind == wanted:
                break
            if size < 8:
                raise ValueError(f"found a box of {size} bytes in a fragment")
            start += size
        else:
            raise ValueError(f"found no {wanted.decode()} in a fragment")
        if depth + 1 < len(path):
            start, end = start + 8, start + size
    return start
