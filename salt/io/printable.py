"""Foreign text as it may be shown: file names, prompts, metadata and servers' messages can hold escape sequences."""

from __future__ import annotations

import logging
import unicodedata

MAX_ERROR_LENGTH = 400


def printable(text: object) -> str:
    r"""The text with control, invisible and direction-changing characters as escapes (`\x1b`, `\u202e`)."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in str(text))


def one_line(error: BaseException | str) -> str:
    """An error as one printable line of at most 400 characters; of a longer one the middle is left out."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    if len(text) <= MAX_ERROR_LENGTH:
        return text
    head = MAX_ERROR_LENGTH * 2 // 3
    return f"{text[:head]} ... {text[head + 5 - MAX_ERROR_LENGTH :]}"


class PrintableFormatter(logging.Formatter):
    """A log record as printable lines."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
