"""Atomic writing of files and folders, and the checks of a path before it is read or written.

Whatever ends the writing (an exception, Ctrl-C, a full disk), the target is either the whole new content or what it was
before.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .partial_files import new_partial, written_path

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL_FOLDER = ".partial"  # ending of a folder's hidden name


def require_file(path: str | Path, expected: str) -> Path:
    """The path of an existing file. Raises FileNotFoundError or IsADirectoryError saying what was expected."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: found a folder, expected {expected}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected {expected}")
    return path


def check_free(path: Path, what: str) -> Path:
    """The path of a new file, `what`. Raises FileExistsError where a file is there, which is never replaced."""
    if path.exists():
        raise FileExistsError(f"{path}: found a file, expected a name for a new {what}; nothing was replaced")
    return path


def check_writable(path: str | Path, suffix: str) -> Path:
    """Check, before any work is done for it, that a file can be written to `path`; creates its folder.

    Returns the file that will be written, which is a symbolic link's target.

    Raises ValueError for a name that does not end in `suffix`, OSError (naming the path) when the folder cannot be
    created or written to, or when the path is itself a folder.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: expected a file name that ends in {suffix}")
    path = written_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, found a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Permission bits are not reliable (root, read-only and full disks), so a byte is actually written.
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise OSError(f"{path}: cannot write to folder {path.parent} ({error.strerror or error})") from error
    return path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, on the same file system; it replaces `path` when the block ends.

    A symbolic link stays, and its target is replaced. When the block fails what was at `path` stays and the temporary
    file is removed; one that a killed process left behind is removed by the next call for the same path. Creates the
    folder. Raises OSError where the system refuses.
    """
    path = written_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hidden folder, because safetensors writes to a temporary file of its own beside the one that it is given.
    folder = new_partial(path, ".part")
    try:
        folder.mkdir()
        yield folder / path.name
        replace_file(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write files to; it replaces `path`, a folder, when the block ends.

    When the block fails what was at `path` stays and the temporary folder is removed; one that a killed process left
    behind is removed by the next call for the same path. Raises OSError where the system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = new_partial(path, PARTIAL_FOLDER)
    try:
        partial.mkdir()
        yield partial
        for file in sorted(partial.iterdir()):
            _sync_file(file)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(partial, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # not there after a success


def replace_file(source: Path, target: Path) -> None:
    """Flush a complete file to disk and move it to `target` (same file system), in place of an older file."""
    _sync_file(source)
    os.replace(source, target)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises OSError where the system refuses."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device and memory layout to a safetensors file, atomically.

    Raises OSError, naming the path, where the system refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_write(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode  # the system's mode for new files; safetensors would make the file private
            save_file({name: x.contiguous().cpu() for name, x in tensors.items()}, partial, metadata=metadata)
            partial.chmod(mode)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error


def _sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())


# What a system says that does not flush folders (Windows, some network and user-space file systems).
_CANNOT_SYNC = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def _sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, where the system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)
