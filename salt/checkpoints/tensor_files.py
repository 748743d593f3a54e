"""Weight files: find them, open them without reading their data, and report what is wrong with them.

Opened tensors are memory-mapped: they cost memory only once they are used, and those pages belong to the file, so the
system can reclaim them. `CheckpointError` is the one error class of this package.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..io.fields import FieldError, parse_object, read_object
from ..io.remote_names import local_path
from ..io.torch_archive import ArchiveError, check_archive, check_tensors

SUFFIXES = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
INDEX_SUFFIX = ".index.json"
DIFFUSERS_STEM = "diffusion_pytorch_model"
MAX_LISTED_NAMES, MAX_NAME_LENGTH = 5, 100
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<error")


class CheckpointError(ValueError):
    """A weight file that cannot be used or written. The message names the file, what was found and what is expected."""

    __module__ = "salt.checkpoints.tensor_files"


def shorten(names: Iterable[str]) -> str:
    """The first five of `names` and how many there are, for an error message."""
    names = [name[:MAX_NAME_LENGTH] for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(names[:MAX_LISTED_NAMES]) + more


def open_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The memory-mapped content of a weight file and its metadata. A torch file may hold dicts of tensors.

    The content decides the format, not the file's name. Raises `CheckpointError` for anything but a whole safetensors
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
    elif head.lstrip().lower().startswith(WEB_PAGE):
        what = "a web page, not weights: the download failed (a login or an error page). Download it again"
    elif head.startswith(b"GGUF"):
        what = "a GGUF file, which only ComfyUI's loaders read"
    elif head.startswith((b"\x80", b"(")):
        what = "a bare pickle, which may hold code; it was not opened. Save it again with torch.save, tensors only"
    elif head.isascii() and (text := head.decode("ascii")).replace("\n", " ").isprintable():
        what = f"a text that begins with {text[:40]!r}, not weights: the download failed. Download it again"
    else:
        what = "neither a safetensors file nor a torch zip archive"
    raise CheckpointError(f"{path} is {what}")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; {} for any other file. Raises `CheckpointError` for a damaged one."""
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] != b"{":
                return {}
        with safe_open(path, framework="pt") as tensors:
            return dict(tensors.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read, or is damaged or cut short: {error}") from error


def _open_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is damaged or cut short ({size} bytes): {error}") from error


def _open_torch(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    try:
        check_archive(path)
        if path.name.endswith(".safetensors"):  # torch goes by the name of a path, and maps no open file
            with path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if isinstance(content, dict):
            check_tensors(content, size)
    except ArchiveError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), error
        )
        raise CheckpointError(f"{path} holds more than tensors, possibly code; none of it was run: {reason}") from error
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged or cut short ({size} bytes): {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict of tensors")
    return {str(name): value for name, value in content.items()}


def find_files(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """The weight files of a model, and the config.json beside them ({} where there is none).

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
    # A config.json describes the files with diffusers' usual name, not every file that is in its folder.
    config = read_json(beside) if path.name.startswith(DIFFUSERS_STEM) and beside.exists() else {}
    return _indexed(path) if path.name.endswith(INDEX_SUFFIX) else [path], config


def _files_in(folder: Path) -> list[Path]:
    indices = sorted(folder.glob(f"*.safetensors{INDEX_SUFFIX}"))
    if len(indices) == 1:
        return _indexed(indices[0])
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    usual = [file for file in files if file.stem == DIFFUSERS_STEM]
    # An original Wan folder also has text encoder and autoencoder; other folders hold one model in two formats.
    chosen = usual or files
    chosen = [file for file in chosen if file.suffix == ".safetensors"] or chosen
    if len(chosen) == 1 and not indices:
        return chosen
    found = shorten(file.name for file in [*indices, *chosen]) or "none"
    raise CheckpointError(
        f"{folder}: expected one weight file, one {INDEX_SUFFIX} or a folder `transformer`; found {found}"
    )


def _indexed(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} has no `weight_map` that says which file holds which tensor")
    try:
        files = sorted({local_path(index.parent, name) for name in table.values()})
    except ValueError as error:
        raise CheckpointError(f"{index}: weight_map: {error}") from None
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise CheckpointError(f"{index}: {len(absent)} of its {len(files)} files are missing: {shorten(absent)}")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError` for anything else."""
    try:
        return read_object(path)
    except (OSError, FieldError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def metadata_json(metadata: Mapping[str, str], key: str, where: str) -> dict[str, Any]:
    """The JSON object under `key` of a file's metadata; {} where there is none."""
    if key not in metadata:
        return {}
    try:
        return parse_object(metadata[key])
    except FieldError as error:
        raise CheckpointError(f"{where}: its metadata `{key}`: {error}") from error
