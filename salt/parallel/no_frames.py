"""A decoder for the processes that write no video."""

from __future__ import annotations

from torch import Tensor


class NoFrames:
    """A `FrameDecoder` whose frames are one black pixel each. nbytes: of what is kept, nothing."""

    spatial_scale, temporal_scale, nbytes = 8, 4, 0

    def __init__(self) -> None:
        self.begun = False

    def reset(self) -> None:
        self.begun = False

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        batch, _, frames = latents_BCFHW.shape[:3]
        count = self.temporal_scale * frames - (0 if self.begun else self.temporal_scale - 1)
        self.begun = True
        return latents_BCFHW.new_zeros(batch, 3, count, 1, 1)

    def fork(self) -> NoFrames:
        other = NoFrames()
        other.begun = self.begun
        return other
