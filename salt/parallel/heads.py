"""Attention of one stream split by heads over processes (Ulysses, arXiv 2309.14509), on torch's collectives.

Between attention layers every process has a part of the tokens of each latent frame, and all heads; in self-attention
it has all tokens, and a part of the heads, for which alone it keeps the memory. Two exchanges per layer turn one into
the other. Gradients flow through them: averaged over the processes, as data parallel training does, they are those of
the mean of the processes' losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class HeadGroup:
    """The processes of one stream. group: None for all of them. Frames have T tokens; process r has tokens
    r * ceil(T / size) and so on of each, the last ones padded with zeros, and heads r * heads / size and so on."""

    rank: int
    size: int
    group: dist.ProcessGroup | None = None

    def check_heads(self, heads: int) -> None:
        """Raise InputError where the processes cannot share the heads evenly."""
        if heads % self.size:
            fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
            raise InputError(
                "parallel",
                f"found {self.size} processes for {heads} heads, expected a number that divides them: {fitting}",
            )

    def own_tokens(self, x: Tensor, frames: int) -> Tensor:
        """This process's part of tokens [B, frames * T, ...]: [B, frames * T', ...]."""
        by_frame = self._padded(x, frames).unflatten(2, (self.size, -1))
        return by_frame[:, :, self.rank].flatten(1, 2)

    def all_tokens(self, x: Tensor, frames: int, tokens: int) -> Tensor:
        """The inverse: tokens [B, frames * tokens, ...] of all processes."""
        by_frame = self.gathered(x).unflatten(2, (frames, -1)).movedim(0, 2)
        return by_frame.flatten(2, 3)[:, :, :tokens].flatten(1, 2)

    def own_heads(self, x: Tensor, frames: int, tokens: int) -> Tensor:
        """[N, B, frames * T', heads, D] of this process's tokens -> [N, B, frames * tokens, heads / size, D]."""
        sent = x.unflatten(3, (self.size, -1)).movedim(3, 0).contiguous()  # [size, N, B, S', heads / size, D]
        received = self.exchanged(sent).unflatten(3, (frames, -1))  # [size, N, B, frames, T', heads / size, D]
        return received.movedim(0, 3).flatten(3, 4)[:, :, :, :tokens].flatten(2, 3)

    def all_heads(self, x: Tensor, frames: int, tokens: int) -> Tensor:
        """[B, frames * tokens, heads / size, D] of this process's heads -> [B, frames * T', heads, D]."""
        by_frame = self._padded(x, frames).unflatten(2, (self.size, -1))  # [B, frames, size, T', heads / size, D]
        received = self.exchanged(by_frame.movedim(2, 0).flatten(2, 3).contiguous())  # [size, B, S', heads / size, D]
        return received.movedim(0, 2).flatten(2, 3)

    def _padded(self, x: Tensor, frames: int) -> Tensor:
        """[B, frames * T, ...] -> [B, frames, T padded to a multiple of `size`, ...]."""
        by_frame = x.unflatten(1, (frames, -1))
        missing = -by_frame.shape[2] % self.size
        if not missing:
            return by_frame
        zeros = by_frame.new_zeros(*by_frame.shape[:2], missing, *by_frame.shape[3:])
        return torch.cat([by_frame, zeros], dim=2)

    def exchanged(self, x: Tensor) -> Tensor:
        """Part r of x [size, ...] goes to process r; part r of the result comes from it."""
        return cast(Tensor, _Exchange.apply(x, self.group))

    def gathered(self, x: Tensor) -> Tensor:
        """x of all processes, [size, ...]."""
        return cast(Tensor, _Gather.apply(x, self.size, self.group))


def _exchange(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _exchange(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradient.contiguous(), ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(size)]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(gradient.contiguous(), ctx.group).sum(0), None, None
