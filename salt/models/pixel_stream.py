"""What streaming encoders share: their interface, and the grouping of pixel frames into those of one latent frame."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..acceleration.transfers import to_main_memory


class FrameEncoder(Protocol):
    """A streaming encoder: `salt.models.streaming_encode.WanStreamEncoder`, and `TinyStreamEncoder` of TAEHV."""

    spatial_scale: int
    temporal_scale: int

    def reset(self) -> None:
        """Forget the clip so far: the next call of `encode` starts a new one."""
        ...

    def encode(self, pixels_B3THW: Tensor) -> Tensor:
        """The next T >= 1 pixel frames of the clip -> the latent frames [B, C, F >= 0, h, w] that they complete."""
        ...

    def fork(self) -> FrameEncoder:
        """An encoder that goes on from here on its own, with what it needs of the past in main memory until then."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of the past."""
        ...


class PixelStream:
    """Sorts the pixel frames of successive calls into those of one latent frame each. Used by all encoders.

    What does not fill a latent frame waits for the next call: at most `temporal_scale` - 1 frames.
    """

    def __init__(self, spatial_scale: int, temporal_scale: int) -> None:
        self.spatial_scale, self.temporal_scale = spatial_scale, temporal_scale
        self.geometry: tuple[int, int, int] | None = None  # (B, H, W) of the current clip
        self.started = False  # its first latent frame, which is one pixel frame, has been taken
        self.waiting: Tensor | None = None

    def groups(self, pixels_B3THW: Tensor) -> list[Tensor]:
        """Pixels [B, 3, 1 or temporal_scale, H, W] of every latent frame that is complete now.

        Raises ValueError unless the shape is [B, 3, T >= 1, H, W] with the B, H and W of the calls before, and sides
        that are multiples of the spatial scale.
        """
        self._check(pixels_B3THW)
        pixels = pixels_B3THW
        if self.waiting is not None:
            pixels = torch.cat([self.waiting.to(pixels), pixels], dim=2)
        groups = []
        while pixels.shape[2] >= (size := self.temporal_scale if self.started else 1):
            groups.append(pixels[:, :, :size])
            pixels, self.started = pixels[:, :, size:], True
        self.waiting = pixels.clone() if pixels.shape[2] else None  # a view would keep the whole chunk alive
        return groups

    def _check(self, pixels: Tensor) -> None:
        shape = tuple(pixels.shape)
        if len(shape) != 5 or shape[1] != 3 or shape[2] < 1:
            raise ValueError(f"expected pixels [B, 3, T >= 1, H, W], got {list(shape)}")
        if shape[3] % self.spatial_scale or shape[4] % self.spatial_scale:
            raise ValueError(
                f"height and width must be multiples of {self.spatial_scale} pixels, got {shape[3]}x{shape[4]}"
            )
        geometry = (shape[0], shape[3], shape[4])
        if self.geometry is None:
            self.geometry = geometry
        elif geometry != self.geometry:
            raise ValueError(
                f"this stream encodes pixels of batch, height and width {self.geometry}, got {geometry}; "
                "call reset() to start another clip"
            )

    def copied(self) -> PixelStream:
        twin = PixelStream(self.spatial_scale, self.temporal_scale)
        twin.geometry, twin.started = self.geometry, self.started
        twin.waiting = None if self.waiting is None else to_main_memory(self.waiting)
        return twin

    @property
    def nbytes(self) -> int:
        return 0 if self.waiting is None else self.waiting.numel() * self.waiting.element_size()
