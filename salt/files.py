"""A file that is there, for every room that reads one; writing one whole or not at all, for every room that does."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def existing(path: str | Path, expected: str) -> Path:
    """The path of a file that is there. Raises FileNotFoundError or IsADirectoryError saying what was expected."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: found a folder, expected {expected}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected {expected}")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; it becomes `path` in one step when the block ends.

    When the block fails (a full disk, Ctrl-C) what was at `path` stays, and nothing is left of the attempt. The folder
    is made if need be. Raises OSError where the system refuses.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        # In a folder that could not be made there never was one; after a success it is gone.
        if partial.exists():
            partial.unlink()
