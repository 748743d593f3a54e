"""Text files of prompts: one per line, or one caption. UTF-8, with or without a byte order mark."""

from __future__ import annotations

from pathlib import Path

from .atomic import require_file


def read_prompts(path: Path) -> list[str]:
    """The non-empty lines of a file. Raises OSError or ValueError, naming the file, if it has none or is not text."""
    return list(prompt_lines(path).values())


def prompt_lines(path: Path) -> dict[int, str]:
    """The non-empty lines of a file by their numbers, from 1. Errors as those of `read_prompts`."""
    lines = enumerate(split_lines(read_text(path, "one prompt per line")), 1)
    prompts = {number: line.strip() for number, line in lines if line.strip()}
    if not prompts:
        raise ValueError(f"{path}: found no prompt, expected one per line")
    return prompts


def read_text(path: Path, expected: str) -> str:
    """A file's text. expected: what it should hold, for errors. Raises OSError or ValueError naming the file."""
    try:
        return require_file(path, f"a file with {expected}").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); expected {expected}") from None


def split_lines(text: str) -> list[str]:
    """Lines as text editors see them, ended by \\n, \\r\\n or \\r alone. `str.splitlines` also ends them at form feeds,
    U+0085 and U+2028, which text out of a chat or a PDF has within sentences. A byte order mark is left out."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
