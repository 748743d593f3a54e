"""CUDA side streams, one per device and kind of work.

The caching allocator reuses freed memory only on the stream that it was allocated on, so that a new stream for every
clip would strand the memory of the clip before.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def side_stream(device: torch.device, work: str) -> torch.cuda.Stream:
    """The stream of `device` for a kind of work such as `decode`; the same one every time."""
    return torch.cuda.Stream(device)
