"""Whether a request fits this machine: the bytes that it surely needs, compared with what is free, before any work."""

from __future__ import annotations

import psutil
import torch

from ..errors import InputError


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, as far as the system tells."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def total_bytes(device: torch.device) -> int:
    """Bytes of a device's memory, or of main memory."""
    if device.type != "cuda":
        return psutil.virtual_memory().total
    return torch.cuda.get_device_properties(device).total_memory


def check_bytes(
    field: str, needed: int, device: torch.device, what: str, unit: str = "", count: int = 0, reused: int = 0
) -> None:
    """Raise InputError about `field` where `needed` bytes are not free on the device.

    what: that needs them. unit, count: what the field counts, as `seconds`, and how many were asked for; the error
    then says how many fit. reused: bytes that are allocated already and serve the request.
    """
    free = free_bytes(device) + reused
    if needed <= free:
        return
    fits = f"; at most {free * count // needed:,} {unit} fit" if count else ""
    found = f"{what} needs {bytes_text(needed)}, {bytes_text(free)} are free on {device}"
    raise InputError(field, f"found too much for this machine: {found}{fits}")


def bytes_text(count: int) -> str:
    """Bytes as an error shows them."""
    return f"{count / 1e9:,.1f} GB" if count < 1e24 else "more than 10^15 GB"
