"""The prefix of Salt Save Memory: dates and sizes as core's save nodes expand them, and the folder it has to lie in."""

from __future__ import annotations

import os
import re
from datetime import datetime

from ...salt.errors import InputError
from ...salt.io.fields import shown

FOLDER = "salt_memories"  # below ComfyUI's output and input folders
MAX_NAME_BYTES = 180  # file systems take 255; number, ending and the hidden name while it is written come on top

_DATE_PARTS = {"d": "day", "M": "month", "h": "hour", "m": "minute", "s": "second"}


def with_dates(prefix: str, now: datetime) -> str:
    """`%date:yyyy-MM-dd%` and the like, as ComfyUI's page expands them for core's save nodes before it queues a prompt.

    A prompt that comes through the API has not been through the page. Other `%...%` stay for core's own function.
    """

    def expanded(found: re.Match[str]) -> str:
        parts = found[1].split(".")
        is_date = len(parts) != 2 and parts[0].startswith("date:")  # two parts: a node and its widget
        return _date(parts[0].removeprefix("date:"), now) if is_date else found[0]

    return re.sub("%([^%]+)%", expanded, prefix)


def _date(pattern: str, now: datetime) -> str:
    def part(found: re.Match[str]) -> str:
        name = found[0]
        if name in ("yy", "yyyy"):
            return str(now.year)[-len(name) :]
        attribute = _DATE_PARTS.get(name[0])
        return name if attribute is None else str(getattr(now, attribute)).zfill(len(name))

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", part, pattern)


def checked_prefix(prefix: str, output: str) -> str:
    """The prefix with its dates. Raises InputError unless Salt Load Memory would list a file of that name.

    output: ComfyUI's output folder.
    """
    prefix = with_dates(prefix, datetime.now())
    expected = f"expected a name below {FOLDER}/ in the output folder, where Salt Load Memory looks, as {FOLDER}/clip"
    root = os.path.join(output, FOLDER)
    target = os.path.normpath(os.path.join(output, prefix)) if prefix.isprintable() else root
    relative = os.path.relpath(target, root) if is_below(target, root) else ""
    # A folder in it may be a link to somewhere else, which the list does not follow.
    if not relative or not is_below(os.path.realpath(target), os.path.realpath(root)):
        raise InputError("filename_prefix", f"found {shown(prefix)}, {expected}")
    check_names(relative, f"found {shown(prefix)}; Salt Load Memory does not list hidden names")
    return prefix


def check_names(path: str, hidden: str) -> None:
    """Raise InputError for a relative path with a hidden name (the problem is `hidden`) or one that is too long."""
    for name in path.split(os.sep):
        if name.startswith("."):
            raise InputError("filename_prefix", hidden)
        if (size := len(name.encode())) > MAX_NAME_BYTES:
            raise InputError(
                "filename_prefix", f"found a name of {size} bytes, {shown(name)}, expected at most {MAX_NAME_BYTES}"
            )


def is_below(path: str, folder: str) -> bool:
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path.startswith(folder + os.sep)
