"""Types of the command line's options: names of files, of which an empty one (an unset variable) is refused; sizes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("found an empty name, expected a file or folder")
    return text


def file_path(text: str) -> Path:
    return Path(file_name(text))


def pixel_size(text: str) -> tuple[int, int]:
    """Width and height."""
    found = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected WIDTHxHEIGHT, as 832x480")
    return int(found[1]), int(found[2])
