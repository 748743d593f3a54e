"""The device that a command is to run on."""

from __future__ import annotations

import torch

from ..errors import InputError


def usable_device(name: str) -> torch.device:
    """The device of this name. Raises InputError for a name that torch does not know, or a device that is not here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter where torch was built without CUDA
        count = torch.cuda.device_count()
        expected = f"cpu or cuda (CUDA devices here: {count})" if count else "cpu (this torch sees no CUDA device)"
        raise InputError("device", f"found {name}, expected {expected}") from None
    return device
