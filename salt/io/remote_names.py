"""File names that a server gives: checked before they become paths on this machine."""

from __future__ import annotations

import re
from pathlib import Path

FORBIDDEN = re.compile(r"[\x00-\x1f\x7f:\\]")  # control characters; drives, streams and separators of Windows
MAX_NAME_LENGTH = 200  # file systems take 255 bytes


def local_path(folder: Path, name: object) -> Path:
    """The path of the file `name`, with / between its parts, inside `folder`.

    Raises ValueError for a name that leads out of the folder on any system, or is none: an absolute one, `..`, a drive
    letter, a backslash, a control character.
    """
    parts = name.split("/") if isinstance(name, str) and not FORBIDDEN.search(name) else []
    if not parts or any(part in ("", ".", "..") or len(part) > MAX_NAME_LENGTH for part in parts) or len(parts) > 20:
        raise ValueError(f"found the file name {name!r:.100}, expected one inside the folder {folder}")
    return folder.joinpath(*parts)


def plain_name(name: object) -> str:
    """The last part of a file's name. Raises ValueError where that cannot be the name of a file in a folder."""
    last = re.split(r"[/\\]", name)[-1] if isinstance(name, str) else name
    return local_path(Path(), last).name
