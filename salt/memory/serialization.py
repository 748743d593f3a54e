"""Memory files: the kept frames of every layer and a JSON description, in one safetensors file.

The file of a clip also holds the memory of its unconditional branch, its last latents, and the prompts and settings of
its parts, so that what belongs together is replaced together. Older versions wrote a second file for the branch; such
a pair is still read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..acceleration.free_memory import check_bytes
from ..errors import InputError
from ..io.atomic import require_file, write_tensors
from ..io.fields import FieldError, parse_json, parse_object, read_fields, read_value, shown
from .cache import KVMemory, digits
from .clean_latents import NAMES, CleanLatents
from .description import MemoryDescription
from .far import FarMemory
from .far_files import FarDescription, far_context, far_tensors
from .store import MemoryGeometry, buffer_names, estimate_bytes, row_kinds

FORMAT = "salt-memory-1"
NEGATIVE_SUFFIX = ".negative"  # of the unconditional branch's file beside an older memory file, before the file ending
NEGATIVE = "negative."  # before the tensor names of the unconditional branch, in a clip's file
LATENTS = "latents"


class MemoryFileError(ValueError):
    """A memory file that cannot be used; the message names the file, what it has and what is expected."""

    __module__ = "salt.memory.serialization"


def save_memory(memory: KVMemory, path: str | Path) -> None:
    """Write a memory alone, atomically: an existing file is replaced only by a complete one.

    Raises ValueError for an empty memory and OSError when the folder cannot be written.
    """
    write_tensors(path, _tensors(memory, "", path), {"salt_memory": json.dumps(_description(memory))})


def save_clip(
    path: str | Path,
    memory: KVMemory,
    negative: KVMemory | None = None,
    latents: Tensor | None = None,
    parts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a clip's memory with all that belongs to it, atomically, in one file; errors as for `save_memory`.

    negative: of the unconditional branch. latents: [B, C, F, H, W], the clip's last. parts: prompt and settings of the
    rollouts that made the clip, in order, as JSON can hold them.
    """
    tensors = _tensors(memory, "", path)
    metadata = {"salt_memory": json.dumps(_description(memory)), "salt_clip": json.dumps(list(parts))}
    if negative is not None:
        tensors |= _tensors(negative, NEGATIVE, path)
        metadata["salt_memory_negative"] = json.dumps(_description(negative))
    if latents is not None:
        tensors[LATENTS] = latents
    write_tensors(path, tensors, metadata)


def _tensors(memory: KVMemory, prefix: str, path: str | Path) -> dict[str, Tensor]:
    """The kept frames by name, and a rebuilt memory's clean latents. Raises ValueError for an empty memory."""
    if isinstance(memory, FarMemory) and memory.held:
        return far_tensors(memory, prefix)
    if memory.is_rewound:
        raise ValueError(f"{path}: the memory was rewound and is rebuilt in its next rollout; save it after that")
    if memory.store is None or not memory.held:
        raise ValueError(f"{path}: the memory is empty; a rollout must have written it")
    index = memory.slot_index(memory.held)
    names = buffer_names(memory.policy.precision)
    return {
        f"{prefix}layers.{i}.{name}": part.index_select(1, index.to(part.device)).contiguous().cpu()
        for i, layer in enumerate(memory.store.buffers)
        for name, part in zip(names, layer, strict=True)
    } | {f"{prefix}clean.{name}": x.contiguous().cpu() for name, x in memory.clean.named().items()}


def _description(memory: KVMemory) -> dict[str, Any]:
    far = {}
    if isinstance(memory, FarMemory):
        far = {"far": {"far": memory.context.far, "blocks": list(memory.context.blocks)}}
    return far | {
        "format": FORMAT,
        "policy": memory.policy.to_dict(),
        "geometry": memory.geometry.to_dict(),
        "dtype": str(memory.dtype).removeprefix("torch."),
        "fingerprint": memory.fingerprint,
        "held": list(memory.held),
        "origin": memory.origin,
        "next_frame": memory.next_frame,
        "context_sigma": memory.context_sigma,
        "given": memory.clean.given,
        **_shots(memory),
        **({"overwritten": asdict(memory.overwritten)} if memory.policy.keeps_last_step else {}),
    }


def _shots(memory: KVMemory) -> dict[str, Any]:
    """What a memory of kind `shots` needs beside the rest; slots in the order of `held`."""
    if memory.policy.kind != "shots":
        return {}
    return {"shots": [asdict(shot) for shot in memory.shots], "slots": [memory.slot(f) for f in memory.held]}


def negative_path(path: Path) -> Path:
    """The file of the unconditional branch's memory that an older version wrote beside that of a guided clip."""
    return path.with_name(f"{path.stem}{NEGATIVE_SUFFIX}{path.suffix}")


def is_clip_file(path: str | Path) -> bool:
    """Whether a memory file holds all of its clip, so that files beside it are no part of it."""
    with _opened(path) as file:
        return "salt_clip" in (file.metadata() or {})


def read_clip_parts(path: str | Path) -> list[dict[str, Any]]:
    """Prompts and settings of the rollouts that made the clip in a memory file; none where the file has none."""
    with _opened(path) as file:
        text = (file.metadata() or {}).get("salt_clip")
    try:
        return read_value(list[dict[str, Any]], parse_json(text) if text else [], "salt_clip")
    except FieldError as error:
        raise MemoryFileError(f"{path}: its parts `salt_clip`: {error}") from error


def read_clip_latents(path: str | Path) -> Tensor | None:
    """The last latents [B, C, F, H, W] of the clip in a memory file; None where the file has none."""
    with _opened(path) as file:
        return file.get_tensor(LATENTS) if LATENTS in file.keys() else None  # noqa: SIM118 (no mapping)


def has_negative(path: str | Path) -> bool:
    """Whether a memory file has the unconditional branch in it; or beside it, in a file of an older version."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    return "salt_memory_negative" in metadata or ("salt_clip" not in metadata and negative_path(Path(path)).is_file())


def load_negative(
    path: str | Path, *, fingerprint: str | None = None, device: torch.device | str = "cpu"
) -> KVMemory | None:
    """The memory of the unconditional branch in, or beside, a memory file; None where there is none."""
    if not has_negative(path):
        return None
    if is_clip_file(path):
        return load_memory(path, fingerprint=fingerprint, device=device, prefix=NEGATIVE)
    return load_memory(negative_path(Path(path)), fingerprint=fingerprint, device=device)


def is_memory_file(path: str | Path) -> bool:
    """Whether a file has the description of a memory, damaged or not."""
    try:
        with _opened(path) as file:
            return "salt_memory" in (file.metadata() or {})
    except MemoryFileError:
        return False


def read_memory_info(path: str | Path, prefix: str = "") -> dict:
    """The description in a memory file, without its tensors; of the unconditional branch with the prefix `negative.`.

    Raises MemoryFileError for any other file.
    """
    return _read_description(path, prefix)[0]


def _read_description(path: str | Path, prefix: str) -> tuple[dict[str, Any], MemoryDescription]:
    """The description as it stands in the file, and with its fields checked."""
    key = "salt_memory_negative" if prefix else "salt_memory"
    with _opened(path) as file:
        text = (file.metadata() or {}).get(key)
    try:
        values = parse_object(text) if text else {}
        if (found := values.get("format")) != FORMAT:
            raise MemoryFileError(f"{path}: found format {shown(found)}, expected {FORMAT!r} (a Salt memory file)")
        return values, read_fields(MemoryDescription, values)
    except FieldError as error:
        raise MemoryFileError(f"{path}: its description `{key}`: {error}") from error


def load_memory(
    path: str | Path,
    *,
    fingerprint: str | None = None,
    geometry: MemoryGeometry | None = None,
    device: torch.device | str = "cpu",
    residence: str | None = None,
    prefix: str = "",
) -> KVMemory:
    """Read a memory from a file; a rollout continues from it.

    fingerprint, geometry: of the model and clip size that it must fit. device: of the buffers. residence: `device` or
    `cpu`, instead of the file's. prefix: `negative.` for the unconditional branch (see `load_negative`). Raises
    MemoryFileError, naming the differing field, for a file that does not fit, and for one that is damaged or not a
    memory file.
    """
    info = _read_description(path, prefix)[1]
    if geometry is not None and (difference := info.geometry.difference(geometry)):
        raise MemoryFileError(f"{path}: {difference}")
    if fingerprint is not None and digits(info.fingerprint) != digits(fingerprint):
        raise MemoryFileError(
            f"{path}: fingerprint differs: found {info.fingerprint[:120] or 'none'}, expected {fingerprint} "
            "(the memory was written by another model or LoRA)"
        )
    if info.far is not None:
        return _load_far(path, info, info.far, device, prefix)
    policy = replace(info.policy, residence=residence) if residence else info.policy
    dtype = getattr(torch, info.dtype)
    memory = KVMemory(policy, info.geometry, dtype, device, fingerprint=info.fingerprint)
    memory.origin, memory.next_frame = info.origin, info.next_frame
    memory.held, memory.context_sigma = info.held, info.context_sigma
    memory.shots, memory.slots = info.shots, dict(zip(info.held, info.slots, strict=False))
    names = buffer_names(policy.precision)
    with _opened(path) as file:
        frames = memory.next_frame - memory.origin
        try:
            # Before anything is allocated: a file that claims a shape has to hold it.
            _check_shapes(file, info, prefix, path)
            check_bytes("memory", estimate_bytes(policy, info.geometry, dtype, frames), memory.home, "its buffers")
        except InputError as error:
            raise MemoryFileError(f"{path}: {error}") from None
        index = memory.slot_index(memory.held)
        for i, layer in enumerate(memory.allocated(memory.next_frame).buffers):
            for name, buffer in zip(names, layer, strict=True):
                part = file.get_tensor(f"{prefix}layers.{i}.{name}").to(device=buffer.device, dtype=buffer.dtype)
                buffer.index_copy_(1, index.to(buffer.device), part)
        if info.overwritten is not None:
            memory.overwritten = info.overwritten
        if policy.rebuilt:
            memory.clean = _clean_latents(file, info, prefix, path).to(memory.device)
    return memory


def _load_far(
    path: str | Path, info: MemoryDescription, far: FarDescription, device: torch.device | str, prefix: str
) -> FarMemory:
    memory = FarMemory(info.policy, info.geometry, getattr(torch, info.dtype), device, fingerprint=info.fingerprint)
    with _opened(path) as file:
        try:
            memory.context = far_context(file, far, info.geometry, memory.dtype, memory.device, prefix, path)
        except ValueError as error:
            raise MemoryFileError(str(error)) from None
    memory.origin, memory.next_frame = info.origin, info.next_frame
    memory.held, memory.context_sigma = info.held, info.context_sigma
    return memory


def _clean_latents(file: safe_open, info: MemoryDescription, prefix: str, path: str | Path) -> CleanLatents:
    """Of a memory that is rebuilt. Raises MemoryFileError where they are missing or do not fit one another."""
    present = set(file.keys())
    found = {name: file.get_tensor(key) for name in NAMES if (key := f"{prefix}clean.{name}") in present}
    clean = CleanLatents(**found, given=info.given)
    try:
        clean.check(info.policy, info.geometry, len(info.held))
    except ValueError as error:
        raise MemoryFileError(f"{path}: {prefix}clean.{error}") from None
    return clean


def _check_shapes(file: safe_open, info: MemoryDescription, prefix: str, path: str | Path) -> None:
    """Raise MemoryFileError unless the file holds every layer's tensors in the shapes that its description says."""
    g, present = info.geometry, set(file.keys())
    rows = row_kinds(info.policy.precision, getattr(torch, info.dtype), g.head_dim)
    named = list(zip(buffer_names(info.policy.precision), rows, strict=True))
    for key, values in ((f"{prefix}layers.{i}.{name}", n) for i in range(g.layers) for name, (n, _) in named):
        expected = (g.batch, len(info.held), g.tokens, g.heads, values)
        found = tuple(file.get_slice(key).get_shape()) if key in present else None
        if found != expected:
            raise MemoryFileError(f"{path}: {key}: found {found or 'nothing'}, expected shape {expected}")


def _opened(path: str | Path) -> safe_open:
    try:
        require_file(path, "a Salt memory file")
    except OSError as error:
        raise MemoryFileError(str(error)) from None
    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise MemoryFileError(f"{path}: cut short or not safetensors ({error})") from error
