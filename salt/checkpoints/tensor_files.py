"""The checkpoint room's shelves: weight files opened without reading them, and written so that nothing is ever lost.

Opened tensors are windows on the file (memory-mapped): they cost memory only once they are used, and those pages
belong to the file, so the system can take them back.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from ..io.atomic import replacing
from .errors import CheckpointError, some

SUFFIXES = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
INDEX = ".index.json"
USUAL = "diffusion_pytorch_model"

# In the order that safetensors itself lays tensors out: widest first, so that every tensor starts aligned.
SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def open_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Everything in a weight file, as windows on it, and its metadata. A torch file may hold dicts of tensors.

    The content decides what the file is, not its name. Raises `CheckpointError` for anything but a whole safetensors
    file or a torch zip archive without code in it; code is never run.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.startswith(b"PK\x03\x04"):
        return _open_torch(path), {}
    if head[8:9] == b"{":
        return _open_safetensors(path)
    if not head:
        what = "empty"
    elif b"git-lfs" in head:
        what = "a git-LFS pointer, not the file it stands for"
    elif head.startswith(b"GGUF"):
        what = "a GGUF file, which only ComfyUI's loaders read"
    elif head.startswith((b"\x80", b"(")):
        what = "a bare pickle, which may hold code; it was not opened. Save it again with torch.save, tensors only"
    else:
        what = "neither a safetensors file nor a torch zip archive"
    raise CheckpointError(f"{path} is {what}")


def _open_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is damaged or cut short ({size} bytes): {error}") from error


def _open_torch(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), error
        )
        raise CheckpointError(f"{path} holds more than tensors, possibly code; none of it was run: {reason}") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        size = path.stat().st_size
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged or cut short ({size} bytes): {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict of tensors")
    return content


def find_files(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """The weight files that `path` stands for, and the config.json beside them ({} where there is none).

    `path` is a weight file, a `*.index.json`, a model folder, or a diffusers pipeline folder with `transformer/`.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        if (path / "transformer").is_dir():
            path = path / "transformer"
        config = read_json(path / "config.json") if (path / "config.json").exists() else {}
        return _files_in(path), config
    beside = path.parent / "config.json"
    # A config.json speaks for the files that are named after its folder's kind, not for any file that lies there.
    config = read_json(beside) if path.name.startswith(USUAL) and beside.exists() else {}
    return _indexed(path) if path.name.endswith(INDEX) else [path], config


def _files_in(folder: Path) -> list[Path]:
    indices = sorted(folder.glob(f"*.safetensors{INDEX}"))
    if len(indices) == 1:
        return _indexed(indices[0])
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    usual = [file for file in files if file.stem == USUAL]
    # An original Wan folder has text encoder and autoencoder beside the model, others the same model in two formats.
    chosen = usual or files
    chosen = [file for file in chosen if file.suffix == ".safetensors"] or chosen
    if len(chosen) == 1 and not indices:
        return chosen
    found = some(file.name for file in [*indices, *chosen]) or "none"
    raise CheckpointError(f"{folder}: expected one weight file, one {INDEX} or a folder `transformer`; found {found}")


def _indexed(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} has no `weight_map` that says which file holds which tensor")
    files = sorted({index.parent / name for name in table.values()})
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise CheckpointError(f"{index}: {len(absent)} of its {len(files)} files are missing: {some(absent)}")
    return files


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}; expected a JSON object")
    return value


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` in one step when the block ends, and never existed if the block fails.

    Raises `CheckpointError` where the system refuses (no such folder allowed, disk full); what was at `path` stays.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    fetch: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file tensor by tensor, so that it takes no more memory than its largest tensor.

    `layout` gives each name's shape and dtype in the file; `fetch(name)` the tensor, which is converted as it goes.
    """
    rank = {dtype: place for place, dtype in enumerate(SAFETENSORS_TYPES)}
    order = sorted(layout, key=lambda name: (rank[layout[name][1]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in order:
        shape, dtype = layout[name]
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = fetch(name).detach().to(device="cpu", dtype=layout[name][1]).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
