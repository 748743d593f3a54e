"""Types of the command line's options that name files: an empty name, as of an unset variable, is refused."""

from __future__ import annotations

import argparse
from pathlib import Path


def file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("found an empty name, expected a file or folder")
    return text


def file_path(text: str) -> Path:
    return Path(file_name(text))
