"""Files of prompts, one a line."""

from __future__ import annotations

from pathlib import Path

from .atomic import require_file


def read_prompts(path: Path) -> list[str]:
    """The lines that are not empty. Raises OSError or ValueError, naming the file, for none and for no text."""
    try:
        text = require_file(path, "prompts, one a line").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found no UTF-8 text ({error}), expected prompts, one a line") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: found no prompt, expected one a line")
    return prompts
