"""The clean latents from which a rebuilt memory is written anew before every block (policy `rebuild`).

Krea realtime's rule, from its description: the memory of a block is one forward of the latest clean latents at t = 0,
headed by the clip's first latent frame, or, once that is too far back, by a decoded frame that is encoded as an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..acceleration.transfers import to_main_memory
from ..errors import InputError
from .policy import MemoryPolicy
from .store import MemoryGeometry

# Called with the clean latents [B, C, F, H, W] of every new block, in order: the last pixel frame of the block's first
# latent frame, decoded as part of the clip and encoded as an image, [B, C, 1, H, W].
Reencode = Callable[[Tensor], Tensor]
NAMES = ("first", "recent", "heads")  # of the tensors


@dataclass(frozen=True)
class CleanLatents:
    """What a rebuild reads, of the clip (or the scene) so far. Values of other policies stay empty.

    first: the first latent frame [B, C, 1, H, W]. recent: the latest ones [B, C, F, H, W], as many as the policy's
    window. heads: the re-encoded frames of the latest blocks [B, C, N, H, W], one per block in a window, oldest first;
    that of the first new block is `first` itself. given: latent frames of the clip's start that were not generated.
    """

    first: Tensor | None = None
    recent: Tensor | None = None
    heads: Tensor | None = None
    given: int = 0

    @property
    def frames(self) -> int:
        """Latent frames that a rebuild writes."""
        return 0 if self.recent is None else self.recent.shape[2]

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.named().values())

    def with_block(self, latents: Tensor, policy: MemoryPolicy, given: bool, reencode: Reencode | None) -> CleanLatents:
        """After another block [B, C, F, H, W]. given: it was not generated, but is part of the clip's start.

        Raises InputError without what encodes frames, where the policy needs it.
        """
        first = latents[:, :, :1].clone() if self.first is None else self.first
        parts = [latents] if self.recent is None else [self.recent, latents]
        recent = torch.cat(parts, dim=2)[:, :, -(policy.window or 0) :].clone()
        if given:
            return CleanLatents(first, recent, self.heads, self.given + latents.shape[2])
        heads = self.heads
        if policy.reencodes:
            if reencode is None:
                raise needs_encoder(policy)
            head = reencode(latents).to(latents)
            heads = first if heads is None else torch.cat([heads, head], dim=2)
            blocks = max((policy.window or 0) // latents.shape[2], 1)
            heads = heads[:, :, -blocks:].clone()
        return CleanLatents(first, recent, heads, self.given)

    def source(self) -> Tensor:
        """The latents [B, C, F, H, W] that a rebuild writes: the head, then all but the oldest of the recent ones."""
        assert self.first is not None and self.recent is not None
        head = self.first if self.heads is None else self.heads[:, :, :1]
        return torch.cat([head, self.recent[:, :, 1:]], dim=2)

    def rewound(self) -> CleanLatents:
        """At an earlier moment of the clip: the first frame alone; the others have to be given again."""
        return CleanLatents(self.first, given=self.given)

    def map(self, change: Callable[[Tensor], Tensor]) -> CleanLatents:
        given = {name: None if (x := getattr(self, name)) is None else change(x) for name in NAMES}
        return replace(self, **given)

    def to(self, device: torch.device | str) -> CleanLatents:
        return self.map(lambda x: x.to(device))

    def in_main_memory(self) -> CleanLatents:
        return self.map(to_main_memory)

    def named(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: x for name in NAMES if (x := getattr(self, name)) is not None}

    def check(self, policy: MemoryPolicy, geometry: MemoryGeometry, frames: int) -> None:
        """Raise ValueError naming the tensor that is missing or has another shape than a memory of `frames` rebuilt
        latent frames."""
        shape = [] if self.first is None else list(self.first.shape)
        for name, least, most in (("first", 1, 1), ("recent", frames, frames), ("heads", 1, policy.window or 0)):
            latents: Tensor | None = getattr(self, name)
            if latents is None and name == "heads":
                continue  # of a memory that holds a start alone, or keeps the first frame
            found = [] if latents is None else list(latents.shape)
            alike = len(found) == 5 and [*found[:2], 1, *found[3:]] == shape and found[0] == geometry.batch
            if not alike or not least <= found[2] <= most or latents is None or not latents.is_floating_point():
                counts = str(least) if least == most else f"{least} to {most}"
                raise ValueError(
                    f"{name}: found {found or 'nothing'}, expected clean latents [{geometry.batch}, channels, "
                    f"{counts}, height, width] for {policy}, all of one size"
                )


EMPTY = CleanLatents()


def needs_encoder(policy: MemoryPolicy) -> InputError:
    """The error where frames cannot be decoded and encoded again."""
    return InputError(
        "memory_policy",
        f"found {policy}, which encodes decoded frames again, and there is no VAE with an encoder; {policy},keep "
        "keeps the first frame instead",
    )


def group_lengths(frames: int, block: int) -> list[int]:
    """Lengths of the groups in which `frames` latent frames are rebuilt: whole blocks, then what is left."""
    return [block] * (frames // block) + [frames % block] * (frames % block > 0)
