"""Which widths and heights a model takes: whole tokens, each of so many rows and columns of pixels."""

from __future__ import annotations

from ..errors import InputError


def check_multiple(field: str, pixels: int, multiple: int, what: str = "") -> None:
    """Raise InputError naming `field` and the nearest sizes unless `pixels` is a multiple, above 0.

    what: before the number, where the field is no width or height: `a width of `.
    """
    below = max(pixels // multiple * multiple, 0)
    if pixels != below or not pixels:
        near = " or ".join(str(size) for size in (below, below + multiple) if size)
        raise InputError(field, f"found {what}{pixels} pixels, expected a multiple of {multiple} ({near})")
