"""Decoded frames, encoded again: what a memory with the policy `rebuild` begins with once the clip has moved on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .async_decoder import PendingFrames


class HeadEncoder:
    """A `salt.memory.clean_latents.Reencode`.

    decode: the pixels [B, 3, T, H, W] in [-1, 1] of the clip's next latents, in which those of the argument come last.
    encode: an image [B, 3, 1, H, W] as normalised latents [B, C, 1, h, w].
    """

    def __init__(
        self, decode: Callable[[Tensor], Tensor], encode: Callable[[Tensor], Tensor], temporal_scale: int
    ) -> None:
        self.decode, self.encode, self.temporal_scale = decode, encode, temporal_scale

    def __call__(self, latents: Tensor) -> Tensor:
        pixels = self.decode(latents)
        end = pixels.shape[2] - (latents.shape[2] - 1) * self.temporal_scale  # of the first latent frame
        return self.encode(pixels[:, :, end - 1 : end].clamp(-1, 1))


class LatestPixels:
    """The pixels of the block that was decoded last, asked for by its latents; other latents are decoded then.

    decode: begins to decode the clip's next latents.
    """

    def __init__(self, decode: Callable[[Tensor], PendingFrames]) -> None:
        self.decode = decode
        self._latents: Tensor | None = None
        self._pending: PendingFrames | None = None

    def keep(self, latents: Tensor, pending: PendingFrames) -> PendingFrames:
        """latents: of the block, the last ones of what is being decoded."""
        self._latents, self._pending = latents, pending
        return pending

    def __call__(self, latents: Tensor) -> Tensor:
        pending, self._pending = self._pending, None
        if pending is None or latents is not self._latents:
            pending = self.decode(latents)
        return pending.on_current_stream()
