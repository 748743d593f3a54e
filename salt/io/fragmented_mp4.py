"""H.264 in fragmented mp4, frame by frame: what is encoded so far can be played, sent on, and cut back to a block.

ffmpeg encodes without delay; the fragments, one for every frame, are written here. ffmpeg's own mp4 muxer would hold
each frame back until the next one says how long it lasts. Decode times and sequence numbers continue those of an
earlier encoder, so that the fragments of several encoders are one video. Frames are uint8 [T, H, W, 3].
"""

from __future__ import annotations

import math
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from ..spec import FPS
from .mp4_boxes import beginning, fragment
from .video import H264, VideoWriteError, even_sides, failure_reason, ffmpeg, raw_input

FRAME_TICKS = 1000  # of the track's clock, in a frame
FLV_HEADER_BYTES = 13
FLV_VIDEO, FLV_CONFIGURATION, FLV_FRAME = 9, 0, 1


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
        self._even_size = width, height
        self._log = tempfile.TemporaryFile()
        first = self._first_block
        keys = f"expr:eq(n,0)+gte(n,{first})*eq(mod(n-{first},{self.block_frames}),0)"
        self._process = ffmpeg(
            *["-probesize", "32", "-analyzeduration", "0", *raw_input(width, height, self.fps)],
            *[*H264, "-tune", "zerolatency", "-force_key_frames", keys],
            *["-flush_packets", "1", "-flvflags", "no_duration_filesize", "-f", "flv", "-"],
            log=self._log,
            output=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="salt-fragments", daemon=True
        )
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        """Read ffmpeg's packets to their end, also after an error, so that it never waits."""
        count = 0
        for is_configuration, key, content in packets(stream):
            if is_configuration:
                self.init = beginning(*self._even_size, content, round(self.fps * FRAME_TICKS))
            elif self._error is None:
                frame = self.first_frame + count
                try:
                    self.on_fragment(Fragment(fragment(content, frame, FRAME_TICKS, key), frame, self._is_key(count)))
                except (OSError, ValueError) as error:
                    self._error = error
                count += 1


def packets(stream: IO[bytes]) -> Iterator[tuple[bool, bool, bytes]]:
    """(is the decoder's configuration, is a key frame, content) of every video packet of an FLV stream, up to one that
    is cut short. FLV, as its muxer holds no packet back and says how long each is."""
    stream.read(FLV_HEADER_BYTES)
    while len(header := stream.read(11)) == 11:
        kind, size = header[0], int.from_bytes(header[1:4], "big")
        body = stream.read(size + 4)  # and the length of the tag
        if len(body) < size + 4:
            return
        if kind == FLV_VIDEO and size >= 5 and body[1] in (FLV_CONFIGURATION, FLV_FRAME):
            yield body[1] == FLV_CONFIGURATION, body[0] >> 4 == 1, body[5:size]
