"""Which files could be students: by name, metadata and names of tensors. Headers are read, no weights."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from .families import family_of
from .reader import read_spec
from .tensor_files import CheckpointError, find_files, read_json

Likeness = Literal["student", "wan", "other"]

# A weight that every Wan transformer has, in all spellings that are read; wrappers may stand between its parts.
SIGN = re.compile(rb"(?:^|[^a-z])blocks\.0\.(?:_[a-z_]+\.)*(?:self_attn\.(?:q|qkv|to_qkv)|attn1\.to_(?:q|qkv))\.weight")
CLASSES = re.compile("Wan|AnyFlow|Salt|CausalModel")  # in the config.json of a transformer's folder
MAX_HEADER_BYTES = 2**26  # of a torch archive's list of tensors


def likeness(path: Path) -> Likeness:
    """student: a file or folder with a student's settings, its own or those known for its name. wan: a Wan transformer,
    which may be a student that does not say so. other: anything else, and what cannot be read."""
    try:
        if family_of(path) is not None or read_spec(find_files(path)[0][0]) is not None:
            return "student"
        return "wan" if _is_wan(path) else "other"
    except (CheckpointError, SafetensorError, OSError, ValueError, zipfile.BadZipFile):
        return "other"


def _is_wan(path: Path) -> bool:
    if path.is_dir():
        config = next((p for p in (path / "transformer" / "config.json", path / "config.json") if p.is_file()), None)
        return config is not None and CLASSES.search(str(read_json(config).get("_class_name"))) is not None
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return any(SIGN.search(name.encode()) for name in file.keys())  # noqa: SIM118
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        return any(e.file_size <= MAX_HEADER_BYTES and SIGN.search(archive.read(e)) is not None for e in pickles)
