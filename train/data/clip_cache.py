"""The precomputed files of a folder, each with the key of what it was made from; see `salt.io.content`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

UNUSED = "unused"  # folder of what was made from something else; nothing is deleted

Shapes = Mapping[str, tuple[int | None, ...]]  # by tensor; None: any size


def set_aside_stale(keys: Mapping[Path, str], shapes: Shapes) -> None:
    """Move to `unused/`, and print, those of the files that exist and cannot be used: made from something else than
    their key says, damaged, or of other shapes."""
    for path, key in keys.items():
        if path.is_file() and (reason := _fault(path, key, shapes)):
            set_aside(path, reason)


def set_aside(path: Path, reason: str) -> None:
    """Move a file to `unused/` beside it, under a free name."""
    target = path.parent / UNUSED / path.name
    number = 1
    while target.exists():
        target = path.parent / UNUSED / f"{path.stem}-{number}{path.suffix}"
        number += 1
    target.parent.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):  # another process of the command has just moved it
        path.rename(target)
        print(f"{path}: {reason}; moved to {target}", flush=True)


def metadata_of(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file, None if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, FileNotFoundError):
        return None


def _fault(path: Path, key: str, shapes: Shapes) -> str:
    metadata = metadata_of(path)
    if metadata is None:
        return "is damaged"
    if metadata.get("key") != key:
        return "was made from other files or settings"
    return "" if _has_shapes(path, shapes) else "has other shapes"


def _has_shapes(path: Path, shapes: Shapes) -> bool:
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        for name, wanted in shapes.items():
            found = file.get_slice(name).get_shape() if name in names else []
            if len(found) != len(wanted) or any(w not in (None, f) for f, w in zip(found, wanted, strict=True)):
                return False
    return True
