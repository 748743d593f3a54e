"""A lock on a folder for one process. It ends with the process, however that ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FolderInUseError(OSError):
    """Another process holds the folder; the message names both."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` while open; creates it. Raises FolderInUseError where another process (or thread) does.

    On a file system without locks the folder is used unlocked, with a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with path.open("a+b") as file:
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in _TAKEN:
                file.seek(0)
                owner = file.read(64).decode(errors="replace").strip()
                raise FolderInUseError(
                    f"{folder}: is in use by another run{f' (process {owner})' if owner.isdigit() else ''}, expected a "
                    "folder of its own for every run"
                ) from None
            log.warning("%s: this file system has no locks (%s); let no two runs write to it", folder, error)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # a byte beyond the owner's number, which can then be read by others
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
