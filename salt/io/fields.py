"""What files and servers say, checked before it is used: JSON text, and the types and ranges of its fields.

Dataclasses say what is expected: `read_fields(Geometry, values)` checks every field against its annotation, in which
`Annotated[int, Between(1, 64)]` is a range. Every error is a `FieldError`; the caller adds the file's name.
"""

from __future__ import annotations

import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

MAX_JSON_BYTES = 64 * 2**20  # a checkpoint's index of 100,000 tensors has 10 MiB
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 60
_shorten.maxlevel = 2

Read = TypeVar("Read")


class FieldError(ValueError):
    """A value of the wrong type or out of range: which field, what was found, what was expected."""

    __module__ = "salt.io.fields"


@dataclass(frozen=True)
class Between:
    """A range, both ends included, in an annotation: `Annotated[int, Between(1, 64)]`."""

    low: float
    high: float


Count = Annotated[int, Between(1, 10**6)]
Index = Annotated[int, Between(0, 10**12)]


def shown(value: object) -> str:
    """A value as an error shows it, at most about 60 characters."""
    try:
        return _shorten.repr(value)
    except ValueError:  # an integer of more digits than Python turns into text
        return f"a {type(value).__name__} of too many digits"


def parse_json(text: str | bytes) -> Any:
    """JSON. Raises FieldError for other text, and for JSON that is nested too deeply or has too long a number."""
    try:
        return json.loads(text)
    except RecursionError:
        raise FieldError("found JSON that is nested too deeply, expected fewer levels") from None
    except ValueError as error:
        raise FieldError(f"found no valid JSON ({error})") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises FieldError for anything else."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise FieldError(f"found {shown(value)}, expected a JSON object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises FieldError for anything else, OSError where it cannot be read."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise FieldError(f"found {size:,} bytes, expected at most {MAX_JSON_BYTES:,} of JSON")
    return parse_object(path.read_bytes())


def read_fields(kind: type[Read], values: object, name: str = "") -> Read:
    """A dataclass from a JSON object, every field checked; keys that it does not have are passed over, unless its
    class says `refuses_unknown = True`.

    name: of the object in errors. Raises FieldError, also for a missing field, and for what the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise FieldError(f"{name or 'the content'}: found {shown(values)}, expected an object with named fields")
    hints = _hints(kind)
    prefix = f"{name}." if name else ""
    known = [f for f in fields(kind) if f.init]  # type: ignore[arg-type]
    if getattr(kind, "refuses_unknown", False):
        check_known(name or "the content", values, {f.name for f in known})
    given = {f.name: read_value(hints[f.name], values[f.name], prefix + f.name) for f in known if f.name in values}
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:  # TypeError: a field is missing
        raise FieldError(f"{name or 'the content'}: {error}") from None


def check_known(name: str, values: Mapping[str, object], known: set[str]) -> None:
    """Refuse fields that an object does not have, as they would have no effect. name: of the object."""
    if unknown := sorted(values.keys() - known):
        expected = f"only {', '.join(sorted(known))}" if known else "no fields"
        raise FieldError(f"{name}: found {shown(unknown[0])}, expected {expected}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def read_value(hint: Any, value: object, name: str) -> Any:
    """A JSON value as the type of an annotation. Raises FieldError about `name`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, hint):
            return value
        return read_fields(hint, value, name)
    if origin in (typing.Union, types.UnionType):
        others = [part for part in parts if part is not type(None)]
        if value is None and len(others) < len(parts):
            return None
        if len(others) == 1:
            return read_value(others[0], value, name)
        expected = " or ".join(part.__name__ for part in others)
        return _checked(value, lambda: isinstance(value, tuple(others)), name, expected)
    if origin is Annotated:
        return _in_range(read_value(parts[0], value, name), parts[1], name)
    if origin is Literal:
        return _checked(value, lambda: value in parts, name, f"one of {', '.join(map(str, parts))}")
    if origin in (list, tuple):
        items = _checked(value, lambda: isinstance(value, (list, tuple)), name, "a list")
        return origin(read_value(parts[0], item, f"{name}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        table = _checked(value, lambda: isinstance(value, Mapping), name, "an object with named fields")
        return {key: read_value(parts[1], item, f"{name}.{shown(key)}") for key, item in table.items()}
    return value if hint is Any else _scalar(hint, value, name)


def _scalar(hint: type, value: object, name: str) -> object:
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _checked(value, lambda: number and abs(value) < 1e300 and math.isfinite(value), name, "a finite number")  # type: ignore[arg-type, operator]
        return value
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    return _checked(value, lambda: right, name, {int: "an integer", str: "text"}.get(hint, hint.__name__))


def _in_range(value: Any, limits: Between, name: str) -> Any:
    expected = f"{limits.low:g} to {limits.high:g}"
    return _checked(value, lambda: limits.low <= value <= limits.high, name, expected)


def _checked(value: Any, right: Callable[[], bool], name: str, expected: str) -> Any:
    if not right():
        raise FieldError(f"{name}: found {shown(value)}, expected {expected}")
    return value
