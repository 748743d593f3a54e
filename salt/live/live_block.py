"""A block that a live session has made, as it is handed on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..acceleration.finite_check import FiniteFlag
from ..models.async_decoder import PendingFrames
from .history import KeptBlock
from .video_feed import PictureStamp


@dataclass(frozen=True)
class LiveBlock:
    """A block that was made. latents: where it was computed. frames: None where nothing is decoded. finite: whether
    the latents are. first_frame: pixel frame along the branch. stamp: of the pictures that it was made from."""

    kept: KeptBlock
    branch: int
    generation: int
    first_frame: int
    cutover: bool
    latents: Tensor
    finite: FiniteFlag
    frames: PendingFrames | None
    stamp: PictureStamp | None = None
