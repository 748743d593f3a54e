"""Names of the hidden files that a target is written to first, and removal of those that a killed run left behind."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from pathlib import Path

log = logging.getLogger(__name__)

# A file whose process cannot be looked for (another machine's or container's) is taken as left behind after a day.
UNKNOWN_OWNER_AGE_S = 24 * 3600
RUN = uuid.uuid4().hex[:4]  # of this process; an earlier one may have had the same number


def written_path(path: str | Path) -> Path:
    """The file that a write to `path` changes: where `path` is a symbolic link, its target."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def new_partial(path: Path, ending: str) -> Path:
    """A hidden path beside `path` that names this process. Removes those of `path` that dead processes left."""
    remove_leftovers(path, ending)
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{RUN}{uuid.uuid4().hex[:8]}{ending}")


def remove_leftovers(path: Path, ending: str) -> None:
    """Remove the hidden files (or folders) beside `path` that were begun for it by processes that are gone."""
    if path.parent.is_dir():
        _remove_leftovers(path.parent, re.escape(path.name), re.escape(ending))


def remove_leftovers_below(folder: Path, ending: str = ".part") -> None:
    """Remove the hidden files that processes that are gone left for any target in a folder, or below it."""
    for place, inner, _ in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]  # a hidden folder goes as a whole
        _remove_leftovers(Path(place), ".+", re.escape(ending))


def _remove_leftovers(folder: Path, name: str, ending: str) -> None:
    """name, ending: regular expressions."""
    pattern = re.compile(rf"\.{name}\.([0-9a-f]{{4}})-(\d+)-([0-9a-f]{{4}})[0-9a-f]{{8}}{ending}(\.\w+)*")
    for file in folder.iterdir():
        found = pattern.fullmatch(file.name)
        if found is None or not _is_left_behind(file, found[1], int(found[2]), found[3]):
            continue
        try:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        except FileNotFoundError:  # another process has removed it
            continue
        except OSError as error:  # it may be another user's; the target can be written all the same
            log.warning("%s: cannot be removed (%s); a run that was killed left it", file, error.strerror or error)


def _is_left_behind(file: Path, host: str, process: int, run: str) -> bool:
    if host == _host() and process == os.getpid():
        return run != RUN
    if host == _host() and os.name != "nt":  # Windows has no harmless way to ask (its os.kill ends the process)
        return not _exists(process)
    return file.exists() and time.time() - file.stat().st_mtime > UNKNOWN_OWNER_AGE_S


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _host() -> str:
    """Four hex digits of this machine's (or container's) name."""
    return f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"
