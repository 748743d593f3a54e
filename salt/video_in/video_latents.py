"""Latents of a video that is encoded while a rollout asks for them, so that memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..models.pixel_stream import FrameEncoder


class VideoLatents:
    """A `SourceLatents` of pixels [B, 3, T, H, W] in [-1, 1], taken from an iterator as they are needed.

    Only the block that was asked for last is kept. A video that ends up to a latent frame too early, as its own
    description of its length may have it, is filled with its last frame. widen: makes the rows of a batch of the
    latents' own.
    Raises InputError where the video ends before the latents that it is asked for.
    """

    def __init__(
        self, encoder: FrameEncoder, pixels: Iterator[Tensor], widen: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        self.encoder, self.pixels, self.widen = encoder, pixels, widen
        self.first = 0  # latent frame of `kept`
        self.kept: Tensor | None = None
        self.last_pixels: Tensor | None = None
        self.taken = 0

    def __call__(self, start: int, frames: int) -> Tensor:
        if start < self.first:
            raise ValueError(f"video: latent frame {start} was asked for after {self.first}, expected rising ones")
        while self.kept is None or self.first + self.kept.shape[2] < start + frames:
            latents = self.encoder.encode(self._next(start + frames))
            self.kept = latents if self.kept is None else torch.cat([self.kept, latents], dim=2)
        self.kept, self.first = self.kept[:, :, start - self.first :], start
        return self.widen(self.kept[:, :, :frames])

    def _next(self, end: int) -> Tensor:
        """The next pixels; the last frame again where they end within the last latent frame before `end`."""
        scale = self.encoder.temporal_scale
        pixels = next(self.pixels, None)
        if pixels is not None:
            self.taken += pixels.shape[2]
            self.last_pixels = pixels[:, :, -1:]
            return pixels
        needed = scale * (end - 1) + 1
        if self.last_pixels is None or needed - self.taken > scale:
            raise InputError("video", f"ended after {self.taken} frames, expected {needed}")
        return self.last_pixels
