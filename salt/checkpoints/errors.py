"""The checkpoint room's one complaint."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 5


class CheckpointError(ValueError):
    """A weight file that cannot be used, or could not be written: the message names it, what was found and expected."""


def some(names: Iterable[str]) -> str:
    """At most five of `names` and how many there are, for a message a person reads."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
