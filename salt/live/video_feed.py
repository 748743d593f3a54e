"""Pictures of a camera or a video file as the source of live blocks: the latest win, nothing queues up.

A block takes as many pixel frames as it shows, evenly from the pictures that have come since the block before. The
pictures themselves are not kept, so a session that has used some has no replay.
"""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..block_plan import BlockPlan
from ..errors import InputError
from ..io.images import DAMAGED, uint8_pixels
from ..io.video import fit
from ..io.video_frames import video_frames
from ..model_input import Condition
from ..models.pixel_stream import FrameEncoder
from ..spec import FPS
from ..video_in.motion import MotionNoise, motion_between
from ..video_in.strength import Strength

JPEG_START = b"\xff\xd8\xff"
MAX_PICTURE_SIDE = 2048  # pixels; a few bytes of JPEG can claim any size
MAX_PICTURES = 64  # that wait for the next block; older ones are dropped
T = TypeVar("T")
OFF_SECONDS = 2.0  # without a picture, after which a camera counts as switched off


@dataclass(frozen=True)
class PictureStamp:
    """What a block was made from: the newest picture's time by its sender's clock, in ms, and that sender."""

    sender: str
    sent_at: float


@dataclass(frozen=True)
class Pictures:
    """frames: uint8 [T, H, W, 3]. begins: they do not follow those of the block before."""

    frames: list[np.ndarray]
    begins: bool
    stamp: PictureStamp | None = None


class PictureSource(Protocol):
    """Where pictures come from. kind: as the state names it."""

    kind: Literal["camera", "file"]

    def take(self, count: int, first: int) -> Pictures | None:
        """`count` pictures for a block that goes on, `first` for one that begins; None where there are none now."""
        ...


class CameraPictures:
    """Pictures that a viewer sends, as JPEG. Any thread may `put` them."""

    kind: Literal["camera", "file"] = "camera"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._waiting: deque[tuple[float, str, float, bytes]] = deque(maxlen=MAX_PICTURES)
        self._latest: tuple[float, np.ndarray, PictureStamp] | None = None

    def put(self, jpeg: bytes, sender: str, sent_at: float) -> None:
        """Raises InputError for bytes that are no JPEG. Decoded when a block takes it."""
        if not jpeg.startswith(JPEG_START):
            raise InputError("picture", f"found {len(jpeg):,} bytes that are no JPEG, expected one picture")
        with self._lock:
            self._waiting.append((self._clock(), sender, sent_at, jpeg))

    def take(self, count: int, first: int) -> Pictures | None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        now, begins = self._clock(), self._latest is None
        if self._latest is not None and now - self._latest[0] > OFF_SECONDS:
            self._latest, begins = None, True
        decoded = []
        wanted = first if begins else count
        for came, sender, sent_at, jpeg in _evenly(waiting, min(wanted, len(waiting))):
            if now - came <= OFF_SECONDS and (picture := decoded_jpeg(jpeg)) is not None:
                decoded.append(picture)
                self._latest = (came, picture, PictureStamp(sender, sent_at))
        if self._latest is None:
            return None
        pictures = decoded or [self._latest[1]]
        return Pictures(_evenly(pictures, wanted), begins, self._latest[2])


def _evenly(items: list[T], count: int) -> list[T]:
    """`count` of the items, evenly, the last one always; each several times where there are fewer."""
    many = len(items)
    indices = [(i + 1) * many // count - 1 if many >= count else i * many // count for i in range(count)]
    return [items[i] for i in indices] if items else []


def decoded_jpeg(jpeg: bytes) -> np.ndarray | None:
    """uint8 [H, W, 3]; None for damaged or too large pictures, and other formats."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            if max(picture.size) > MAX_PICTURE_SIDE:
                return None
            return np.asarray(picture.convert("RGB"))
    except DAMAGED:
        return None


class RepeatedPictures:
    """Pictures uint8 [H, W, 3] at the models' rate, over and over. read: begins them anew; there is at least one."""

    kind: Literal["camera", "file"] = "file"

    def __init__(self, read: Callable[[], Iterator[np.ndarray]]) -> None:
        self._frames = itertools.chain.from_iterable(read() for _ in itertools.count())
        self._ahead = next(self._frames)  # what is wrong with a file is said at once
        self._begun = False

    def take(self, count: int, first: int) -> Pictures:
        begins, self._begun = not self._begun, True
        frames = []
        for _ in range(first if begins else count):
            frames.append(self._ahead)
            self._ahead = next(self._frames)
        return Pictures(frames, begins)


class FilePictures(RepeatedPictures):
    """A video file at the models' rate `fps`. Raises OSError and ValueError, naming it, for other files."""

    def __init__(self, path: Path, fps: int = FPS) -> None:
        super().__init__(lambda: _file_pictures(path, fps))


def _file_pictures(path: Path, fps: int) -> Iterator[np.ndarray]:
    found = 0
    with video_frames(path, fps=fps) as (_, pictures):
        for picture in pictures:
            found += 1
            yield picture
    if not found:
        raise ValueError(f"{path}: has no frames, expected a video")


class VideoFeed:
    """Latents of the pictures for a block, encoded as a stream that begins anew where pictures were missing.

    size: pixels (H, W) of the clip, which pictures are scaled to cover, and cut to. used: whether a block was made from
    pictures. stamp: of the latest block; motion: in it, 0 to 1 (`salt.video_in.motion`).
    """

    def __init__(self, encoder: FrameEncoder, size: tuple[int, int], source: PictureSource) -> None:
        self.encoder, self.size, self.source = encoder, size, source
        self.used = False
        self.stamp: PictureStamp | None = None
        self.motion = 0.0
        self._before: Tensor | None = None  # the latest picture
        self._scale: float | None = None  # noise level of the latest block, by StreamDiffusionV2's rule

    def begin(self, plan: BlockPlan[Condition], start: int, strength: float) -> BlockPlan[Condition]:
        """The plan of a block at latent frame `start`, from the pictures that have come; as it is without any."""
        latents = self.latents(plan.length(start))
        if latents is None:
            return plan
        if plan.settings.schedule.rule != "streamdiffusion2":
            return Strength(lambda start, frames: latents, strength)(plan, start)
        noise = MotionNoise(lambda start, frames: latents, lambda start, frames: self.motion, strength)
        noise.scale = self._scale
        plan, self._scale = noise(plan, start), noise.scale
        return plan

    def latents(self, frames: int) -> Tensor | None:
        """[1, C, frames, h, w] for the next block; None where no pictures come."""
        scale = self.encoder.temporal_scale
        pictures = self.source.take(frames * scale, (frames - 1) * scale + 1)
        self.stamp = None if pictures is None else pictures.stamp
        if pictures is None:
            return None
        if pictures.begins:
            self.encoder.reset()
            self._before = self._scale = None
        self.used, self.motion, latents = True, 0.0, []
        for picture in pictures.frames:
            pixels = fit(uint8_pixels(picture[None]), self.size)
            if self._before is not None:
                self.motion = max(self.motion, motion_between(self._before, pixels))
            self._before = pixels
            latents.append(self.encoder.encode(pixels))
        return torch.cat(latents, dim=2)
