"""Text files with one prompt per line."""

from __future__ import annotations

from pathlib import Path

from .atomic import require_file


def read_prompts(path: Path) -> list[str]:
    """The non-empty lines of a file. Raises OSError or ValueError, naming the file, if it has none or is not text."""
    try:
        text = require_file(path, "a file with one prompt per line").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); expected one prompt per line") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: found no prompt, expected one per line")
    return prompts
