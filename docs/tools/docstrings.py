"""A griffe extension: docstring lines such as `window: latent frames kept` become a list in the API reference.

The project's docstrings say `name: what it is` line by line, without markup; Markdown alone would run them into
one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"^(?P<names>[A-Za-z_]\w*(?:(?:, | and )\w+)*): (?P<text>\S.*)$")


def list_fields(docstring: str) -> str:
    """The docstring with every run of `name: text` lines as a Markdown list."""
    lines: list[str] = []
    listing = False
    for line in docstring.split("\n"):
        if not line.strip():
            listing = False
        if match := FIELD.match(line):
            if not listing and lines and lines[-1].strip():
                lines.append("")
            listing = True
            lines.append(f"- **{match['names']}**: {match['text']}")
        else:
            lines.append(f"    {line.strip()}" if listing else line)
    return "\n".join(lines)


class FieldLists(griffe.Extension):
    """Applies `list_fields` to every docstring behind its first line."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            head, newline, rest = obj.docstring.value.partition("\n")
            obj.docstring.value = head + newline + list_fields(rest)
