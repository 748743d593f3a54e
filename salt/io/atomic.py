"""Files that are there, places that can be written to, and writing a file whole or not at all, for every room."""

from __future__ import annotations

import os
import tempfile
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


def check_writable(path: str | Path, suffix: str) -> Path:
    """Makes sure, before any work is done for it, that a file can be written to `path`; its folder is made if need be.

    Raises ValueError for a name that does not end in `suffix`, OSError (naming the path) when the folder cannot be made
    or written to, or when the path is itself a folder.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: expected a file name that ends in {suffix}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, found a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell (root, read-only and full disks), so a byte is really written.
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise OSError(f"{path}: cannot write to folder {path.parent} ({error.strerror or error})") from error
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
