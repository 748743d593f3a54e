"""What a viewer's browser sends: JSON text, checked field by field before anything is done with it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, TypeGuard

from ...io.fields import Between, FieldError, Index, check_known, parse_object, read_fields, shown

MAX_DEPTH = 8
PICTURE_MAGIC, PICTURE_HEADER = b"SLC1", struct.Struct("<4sd")
MAX_CLOCK = 1e15  # milliseconds


@dataclass(frozen=True)
class Hello:
    """The first message. after: the last event that a viewer who reconnects has heard of."""

    after: Index | None = None


@dataclass(frozen=True)
class ControlMessage:
    """A control (see `salt.live.controls`). ref: the client's own number for it, named in the answer."""

    ref: Index
    control: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Played:
    """frame: play index of the last frame that was shown. dropped: frames that were left out since the last message."""

    frame: Index
    dropped: Index = 0


@dataclass(frozen=True)
class Steer:
    """Asks for the steering."""


@dataclass(frozen=True)
class Release:
    """Hands the steering over."""


@dataclass(frozen=True)
class Ping:
    t: Annotated[float, Between(-MAX_CLOCK, MAX_CLOCK)]


ClientMessage = Hello | ControlMessage | Played | Steer | Release | Ping
KINDS: dict[str, type[Hello | Played | Steer | Release | Ping]] = {
    "hello": Hello,
    "played": Played,
    "steer": Steer,
    "release": Release,
    "ping": Ping,
}


@dataclass(frozen=True)
class Refusal:
    """Why a message was refused. ref: of the control that it was, if that could be read."""

    field: str
    problem: str
    ref: int | None = None

    def json(self) -> dict[str, object]:
        return {"type": "refused", "ref": self.ref, "field": self.field, "message": self.problem}


@dataclass(frozen=True)
class PictureMessage:
    """A binary message: a camera's picture. sent_at: milliseconds of the client's clock."""

    sent_at: float
    jpeg: bytes


def read_picture(data: bytes) -> PictureMessage:
    """`SLC1`, the time as a little-endian double, then a JPEG. Raises FieldError for anything else."""
    if len(data) <= PICTURE_HEADER.size or not data.startswith(PICTURE_MAGIC):
        raise FieldError(f"message: found {len(data)} binary bytes, expected a picture ({PICTURE_MAGIC.decode()})")
    _, sent_at = PICTURE_HEADER.unpack_from(data)
    if not abs(sent_at) < MAX_CLOCK:  # which NaN is not either
        raise FieldError(f"t: found {sent_at:g}, expected milliseconds")
    return PictureMessage(sent_at, data[PICTURE_HEADER.size :])


def read_message(text: str) -> ClientMessage:
    """A message of a client. Raises FieldError for anything that is none."""
    values = parse_object(text)
    _check_text(values)
    kind = values.pop("type", None)
    if kind == "control":
        name, ref = values.pop("control", None), values.pop("ref", None)
        if not isinstance(name, str):
            raise FieldError(f"control: found {shown(name)}, expected the name of a control")
        if not _is_ref(ref):
            raise FieldError(f"ref: found {shown(ref)}, expected a number of your own, 0 or more")
        return ControlMessage(ref, name, values)
    if not isinstance(kind, str) or kind not in KINDS:
        raise FieldError(f"type: found {shown(kind)}, expected one of control, {', '.join(KINDS)}")
    check_known(kind, values, {field.name for field in fields(KINDS[kind])})
    return read_fields(KINDS[kind], values)


def control_ref(text: str) -> int | None:
    """The `ref` of a control that was refused, None where it cannot be read."""
    try:
        ref = parse_object(text).get("ref")
    except FieldError:
        return None
    return ref if _is_ref(ref) else None


def _is_ref(ref: object) -> TypeGuard[int]:
    return isinstance(ref, int) and not isinstance(ref, bool) and 0 <= ref < 2**53


def _check_text(value: object, depth: int = 0) -> None:
    """Refuse half characters (which no tokenizer, file or socket takes) and nesting that no message has."""
    if depth > MAX_DEPTH:
        raise FieldError(f"found JSON that is nested too deeply, expected at most {MAX_DEPTH} levels")
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise FieldError(f"found {shown(value)}, expected whole characters")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(key, depth)
            _check_text(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_text(item, depth + 1)
