"""CUDA streams beside the current one, one for each kind of work: what is freed on a stream stays that stream's.

The allocator keeps memory per stream, so a new stream for every clip would strand what the clip before has used.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def side_stream(device: torch.device, work: str) -> torch.cuda.Stream:
    """The stream of `device` for this work, such as `decode`; the same one every time."""
    return torch.cuda.Stream(device)
