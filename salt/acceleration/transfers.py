"""Copies between main memory and a GPU that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of main memory on `device`. To a GPU through pinned memory, so that the host may go on at once."""
    target = torch.device(device)
    if x.is_cuda or target.type != "cuda":
        return x.to(target)
    return (x if x.is_pinned() else x.pin_memory()).to(target, non_blocking=True)


def to_main_memory(x: Tensor) -> Tensor:
    """The tensor in main memory, copied on the current stream where it lies on a GPU: only work that is queued behind
    it, or a synchronised host, may read the result."""
    if not x.is_cuda:
        return x.cpu()
    copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return copy.copy_(x, non_blocking=True)
