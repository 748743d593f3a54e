"""Noise sources of a rollout: functions of (start frame, frames, draw), reproducible from a seed per clip."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .acceleration.transfers import to_device
from .errors import InputError


class NoiseSource(Protocol):
    """Any callable (start, frames, draw) -> noise [B, C, frames, H, W], with its `seeds`.

    start: latent frame at which the block starts. draw 0 is the block's initial noise, draw i the fresh noise added
    before step i.
    """

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed per batch row; () where the noise does not come from seeds."""
        ...

    def __call__(self, start: int, frames: int, draw: int) -> Tensor: ...


def batch_seeds(seed: int | Sequence[int], batch: int) -> tuple[int, ...]:
    """One seed per batch row: the sequence itself, or seed, seed + 1, ...

    Raises InputError if their number is not the batch size.
    """
    seeds = tuple(seed + i for i in range(batch)) if isinstance(seed, int) else tuple(int(s) for s in seed)
    if len(seeds) != batch:
        raise InputError("seed", f"found {len(seeds)} seeds, expected one per batch row ({batch})")
    return seeds


class SeededNoise:
    """Standard normal noise [B, C, F, H, W], drawn on the CPU from one generator per batch row, block and draw.

    seed: one for each of the `batch` rows, or the first of consecutive ones. channels, height, width: of the latents.
    Drawn on the CPU, a clip is the same on every device; seeded by the block's start frame, block k is the same
    whatever the clip's length, so an extended clip equals the longer one.
    Raises InputError for a wrong number of seeds.
    """

    def __init__(
        self,
        seed: int | Sequence[int],
        batch: int,
        channels: int,
        height: int,
        width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._seeds = batch_seeds(seed, batch)
        self.shape, self.device, self.dtype = (channels, height, width), torch.device(device), dtype

    @property
    def seeds(self) -> tuple[int, ...]:
        return self._seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        channels, height, width = self.shape
        rows = [
            torch.randn(channels, frames, height, width, generator=_generator(seed, start, draw))
            for seed in self._seeds
        ]
        drawn = torch.stack(rows).to(self.dtype)
        return to_device(drawn, self.device)


def _generator(seed: int, start: int, draw: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{start}/{draw}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class GivenNoise:
    """Another source's noise, except for the initial noise of the new frames: latents [B, C, F, H, W], from latent
    frame `offset` on."""

    def __init__(self, latents: Tensor, offset: int, source: NoiseSource) -> None:
        self.latents, self.offset, self.source = latents, offset, source

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.source.seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        if draw:
            return self.source(start, frames, draw)
        return self.latents[:, :, start - self.offset : start - self.offset + frames]
