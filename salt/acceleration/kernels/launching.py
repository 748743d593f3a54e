"""Where kernels can run at all, and the sizes of their programs. Triton itself is imported with the first launch."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_WIDTH = 16384  # of a token: one program holds it in registers


def installed() -> bool:
    """Whether Triton is."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in Python (its TRITON_INTERPRET); for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether a tensor on this device can be given to a kernel, by its kind."""
    return device.type == "cuda" or interpreted()


def fits(x: Tensor) -> bool:
    """Whether kernels can take tokens x [B, S, width]: their kind and layout, and no gradient."""
    return (
        x.dtype in DTYPES
        and x.shape[-1] <= MAX_WIDTH
        and x.stride(-1) == 1
        and runs_on(x.device)
        and not torch.is_grad_enabled()
    )


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def warps(elements: int) -> int:
    """Warps for a program of this many elements: 16 or 32 of them per thread."""
    return min(max(elements // 512, 1), 16)
