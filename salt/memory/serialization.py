"""Memory files: the kept frames of every layer and a JSON description, in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..io.atomic import require_file, write_tensors
from .cache import KVMemory
from .policy import MemoryPolicy
from .store import MemoryGeometry, buffer_names

FORMAT = "salt-memory-1"
NEGATIVE_SUFFIX = ".negative"  # of the unconditional branch, before the file ending


class MemoryFileError(ValueError):
    """A memory file that cannot be used; the message names the file, what it has and what is expected."""


def save_memory(memory: KVMemory, path: str | Path) -> None:
    """Write a memory, atomically: an existing file is replaced only by a complete one.

    Raises ValueError for an empty memory and OSError when the folder cannot be written.
    """
    if memory.store is None or not memory.held:
        raise ValueError(f"{path}: the memory is empty; a rollout must have written it")
    index = memory.slot_index(memory.held)
    names = buffer_names(memory.policy.precision)
    tensors = {
        f"layers.{i}.{name}": part.index_select(1, index.to(part.device)).contiguous().cpu()
        for i, layer in enumerate(memory.store.buffers)
        for name, part in zip(names, layer, strict=True)
    }
    info = {
        "format": FORMAT,
        "policy": memory.policy.to_dict(),
        "geometry": memory.geometry.to_dict(),
        "dtype": str(memory.dtype).removeprefix("torch."),
        "fingerprint": memory.fingerprint,
        "held": list(memory.held),
        "origin": memory.origin,
        "next_frame": memory.next_frame,
        "context_sigma": memory.context_sigma,
    }
    write_tensors(path, tensors, {"salt_memory": json.dumps(info)})


def negative_path(path: Path) -> Path:
    """The file of the unconditional branch's memory, beside that of a clip sampled with guidance."""
    return path.with_name(f"{path.stem}{NEGATIVE_SUFFIX}{path.suffix}")


def read_memory_info(path: str | Path) -> dict:
    """The description in a memory file, without its tensors. Raises MemoryFileError for any other file."""
    with _opened(path) as file:
        text = (file.metadata() or {}).get("salt_memory")
    try:
        info = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise MemoryFileError(f"{path}: its description is damaged ({error})") from error
    if info.get("format") != FORMAT:
        raise MemoryFileError(f"{path}: found format {info.get('format')!r}, expected {FORMAT!r} (a Salt memory file)")
    return info


def load_memory(
    path: str | Path,
    *,
    fingerprint: str | None = None,
    geometry: MemoryGeometry | None = None,
    device: torch.device | str = "cpu",
    residence: str | None = None,
) -> KVMemory:
    """Read a memory from a file; a rollout continues from it.

    fingerprint, geometry: of the model and clip size that it must fit. device: of the buffers. residence: `device` or
    `cpu`, instead of the file's. Raises MemoryFileError, naming the differing field, for a file that does not fit, and
    for one that is damaged or not a memory file.
    """
    info = read_memory_info(path)
    saved = MemoryGeometry(**info["geometry"])
    if geometry is not None and (difference := saved.difference(geometry)):
        raise MemoryFileError(f"{path}: {difference}")
    if fingerprint is not None and info["fingerprint"] != fingerprint:
        raise MemoryFileError(
            f"{path}: fingerprint differs: found {info['fingerprint'] or 'none'}, expected {fingerprint} "
            "(the memory was written by another model)"
        )
    policy = MemoryPolicy(**{**info["policy"], **({"residence": residence} if residence else {})})
    memory = KVMemory(policy, saved, getattr(torch, info["dtype"]), device, fingerprint=info["fingerprint"])
    memory.origin, memory.next_frame = info["origin"], info["next_frame"]
    memory.held, memory.context_sigma = tuple(info["held"]), info["context_sigma"]
    store = memory.allocated(memory.next_frame)
    names = buffer_names(policy.precision)
    with _opened(path) as file:
        present = set(file.keys())
        for i, layer in enumerate(store.buffers):
            for name, buffer in zip(names, layer, strict=True):
                key = f"layers.{i}.{name}"
                expected = (buffer.shape[0], len(memory.held), *buffer.shape[2:])
                found = tuple(file.get_slice(key).get_shape()) if key in present else None
                if found != expected:
                    raise MemoryFileError(f"{path}: {key}: found {found or 'nothing'}, expected shape {expected}")
                index = memory.slot_index(memory.held).to(buffer.device)
                buffer.index_copy_(1, index, file.get_tensor(key).to(device=buffer.device, dtype=buffer.dtype))
    return memory


def _opened(path: str | Path) -> safe_open:
    try:
        require_file(path, "a Salt memory file")
    except OSError as error:
        raise MemoryFileError(str(error)) from None
    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise MemoryFileError(f"{path}: cut short or not safetensors ({error})") from error
