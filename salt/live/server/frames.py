"""Frames as the viewers' browsers get them: a header, then one JPEG or WebP picture per frame, in one message.

Every batch is encoded once, in a thread of its own, whatever the number of viewers.
"""

from __future__ import annotations

import asyncio
import io
import struct
from collections import OrderedDict
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from ..messages import FrameBatch

PictureFormat = Literal["jpeg", "webp"]
MAGIC = b"SLF1"
# Magic, generation, branch, block, event, first pixel frame, play index, count, format, flags.
HEADER = struct.Struct("<4sIIIIIIHBB")
LENGTH = struct.Struct("<I")
FORMATS: dict[PictureFormat, int] = {"jpeg": 1, "webp": 2}
CUTOVER = 1  # flag: the first batch after a rewind, fork, cut or goto
QUALITY = 88
SMALL_SIDE = 256  # pictures that a page enlarges, so that coarse colours would be seen; they cost little in full
SMALL_QUALITY = 95
MAX_KEPT = 16  # encoded batches: more than the queue of a viewer holds


def encode_picture(frame_HWC: np.ndarray, format: PictureFormat = "jpeg") -> bytes:
    """One uint8 picture as a file."""
    from PIL import Image

    out, image = io.BytesIO(), Image.fromarray(frame_HWC)
    if format == "webp":
        image.save(out, "webp", quality=QUALITY, method=0)  # others are slower than the student
    elif max(image.size) <= SMALL_SIDE:
        image.save(out, "jpeg", quality=SMALL_QUALITY, subsampling=0)
    else:
        image.save(out, "jpeg", quality=QUALITY)
    return out.getvalue()


def frames_message(batch: FrameBatch, format: PictureFormat) -> bytes:
    """The whole binary message of a batch."""
    flags = CUTOVER if batch.cutover else 0
    position = (batch.generation, batch.branch, batch.block, batch.event, batch.first_frame, batch.play_index)
    parts = [HEADER.pack(MAGIC, *position, len(batch.frames), FORMATS[format], flags)]
    for picture in (encode_picture(frame, format) for frame in batch.frames):
        parts += [LENGTH.pack(len(picture)), picture]
    return b"".join(parts)


class EncodedBatches:
    """The messages of the last batches, each encoded once for all viewers. Used from one event loop."""

    def __init__(self, executor: Executor, format: PictureFormat = "jpeg") -> None:
        self.format: PictureFormat = format
        self._executor = executor
        self._messages: OrderedDict[int, asyncio.Future[bytes]] = OrderedDict()

    async def message(self, batch: FrameBatch) -> bytes:
        if batch.play_index not in self._messages:
            loop = asyncio.get_running_loop()
            self._messages[batch.play_index] = loop.run_in_executor(self._executor, frames_message, batch, self.format)
            while len(self._messages) > MAX_KEPT:
                self._messages.popitem(last=False)
        # Shielded: a viewer that leaves must not cancel what the others wait for.
        return await asyncio.shield(self._messages[batch.play_index])
