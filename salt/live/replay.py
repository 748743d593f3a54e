"""Replay files: a live session as settings, seeds and the controls that were applied, in JSON.

Such a file is data: it names no path and no code, and every field is checked for its type and range.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ..errors import InputError
from ..io.atomic import require_file, write_text
from ..io.fields import Between, FieldError, read_fields, read_object, shown
from ..memory import MemoryPolicy
from ..memory.cache import digits
from ..model_input import Condition
from .controls import (
    CONTROLS,
    Bookmark,
    Control,
    Fork,
    Goto,
    Guidance,
    Loras,
    Nfe,
    Policy,
    Prompt,
    Rewind,
    Seed,
    Strength,
    control_values,
    read_control,
)
from .engine import MAX_LOG, LiveEngine
from .live_block import LiveBlock
from .live_model import LiveModel
from .settings import LiveSettings
from .start import DIGITS, LiveStart

FORMAT = "salt-replay-1"
MAX_BLOCKS = 10**7
MAX_SIDE = 2**14
REPLAYED = (Prompt, Seed, Nfe, Guidance, Strength, Policy, Loras, Bookmark, Rewind, Fork, Goto)


class ReplayFileError(ValueError):
    """A replay file that cannot be used; the message names the file, what it has and what is expected."""

    __module__ = "salt.live.replay"


@dataclass(frozen=True)
class ReplayStart:
    """What a session began with, by its content: latents (a picture or video), or the memory of another clip."""

    kind: Literal["latents", "memory"]
    digest: str
    refuses_unknown: ClassVar[bool] = True

    @classmethod
    def of(cls, start: LiveStart | None) -> ReplayStart | None:
        return None if start is None else cls(start.kind, start.digest)


@dataclass(frozen=True)
class Replay:
    """A session. fingerprint: of its model. width, height: pixels. blocks: that it made in all. controls: those that
    decide what is made, each with the number of blocks made before it. start: what it began with, None for nothing."""

    fingerprint: str
    width: Annotated[int, Between(8, MAX_SIDE)]
    height: Annotated[int, Between(8, MAX_SIDE)]
    settings: LiveSettings
    blocks: Annotated[int, Between(0, MAX_BLOCKS)]
    controls: tuple[tuple[int, Control], ...] = ()
    start: ReplayStart | None = None

    def to_json(self) -> str:
        values: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        values["controls"] = [{"after": after, **control_values(control)} for after, control in self.controls]
        return json.dumps(values, indent=1)

    def save(self, path: str | Path) -> None:
        """Write it, atomically. Raises OSError where the system refuses."""
        write_text(path, self.to_json())


@dataclass(frozen=True)
class _Header:
    """The fields of a replay file besides its format and its controls."""

    fingerprint: str
    width: Annotated[int, Between(8, MAX_SIDE)]
    height: Annotated[int, Between(8, MAX_SIDE)]
    settings: LiveSettings
    blocks: Annotated[int, Between(0, MAX_BLOCKS)]
    start: ReplayStart | None = None
    refuses_unknown: ClassVar[bool] = True


def replay_of(engine: LiveEngine) -> Replay:
    """The session so far; any thread may ask. Raises InputError where pictures of a camera or a file were used."""
    if engine.feed is not None and engine.feed.used:
        raise InputError("replay", "is not kept of this session: the pictures that its blocks were made from are not")
    info, controls = engine.info, tuple(engine.log)  # before the number of blocks, which they do not exceed then
    start = ReplayStart.of(engine.start)
    return Replay(info.fingerprint, info.width, info.height, engine.settings, engine.made, controls, start)


def read_replay(path: str | Path) -> Replay:
    """Raises ReplayFileError for a file that is no replay or has a wrong value, FileNotFoundError where none is."""
    path = require_file(path, "a replay file of a live session (.json)")
    try:
        return parse_replay(read_object(path))
    except (FieldError, InputError) as error:
        raise ReplayFileError(f"{path}: {error}") from None


def parse_replay(values: dict[str, Any]) -> Replay:
    """A replay from its JSON object. Raises FieldError or InputError about a field."""
    if (found := values.get("format")) != FORMAT:
        raise FieldError(f"format: found {shown(found)}, expected {FORMAT!r} (a replay of a live session)")
    header = read_fields(_Header, {k: v for k, v in values.items() if k not in ("format", "controls")})
    listed = values.get("controls", [])
    if not isinstance(listed, list) or len(listed) > MAX_LOG:
        raise FieldError(f"controls: found {shown(listed)}, expected a list of at most {MAX_LOG:,}")
    controls: list[tuple[int, Control]] = []
    for number, item in enumerate(listed):
        after = item.get("after") if isinstance(item, dict) else None
        least = controls[-1][0] if controls else 0
        if not isinstance(after, int) or isinstance(after, bool) or not least <= after <= header.blocks:
            raise FieldError(f"controls[{number}].after: found {shown(after)}, expected {least} to {header.blocks}")
        try:
            control = read_control({key: value for key, value in item.items() if key != "after"})
        except InputError as error:
            raise FieldError(f"controls[{number}].{error}") from None
        if not isinstance(control, REPLAYED):
            names = ", ".join(name for name, kind in CONTROLS.items() if issubclass(kind, REPLAYED))
            raise FieldError(f"controls[{number}].control: found {control.kind!r}, expected one of {names}")
        controls.append((after, control))
    h = header
    return Replay(h.fingerprint, h.width, h.height, h.settings, h.blocks, tuple(controls), h.start)


def replay_engine(
    live_model: LiveModel[Condition], replay: Replay, decodes: bool = False, start: LiveStart | None = None
) -> LiveEngine[Condition]:
    """An engine at the beginning of a replay, for `play`. Raises InputError unless the model, and what it starts with,
    are the session's own."""
    info = live_model.info
    if digits(replay.fingerprint) != digits(info.fingerprint):
        raise InputError(
            "model",
            f"is another one than the replay was made with: found fingerprint {info.fingerprint}, expected "
            f"{replay.fingerprint[:80]}",
        )
    if (info.width, info.height) != (replay.width, replay.height):
        raise InputError("size", f"found {info.width}x{info.height}, expected {replay.width}x{replay.height}")
    check_start(replay.start, start)
    policies = [MemoryPolicy.parse(c.policy) for _, c in replay.controls if isinstance(c, Policy)]
    decodes = decodes or any(policy.reencodes for policy in policies)
    return LiveEngine(live_model, replay.settings, decodes, start)


def check_start(expected: ReplayStart | None, start: LiveStart | None) -> None:
    """Raise InputError, about `memory` or `image`, unless a start is what the session of a replay began with."""
    found = ReplayStart.of(start)
    if found == expected:
        return
    if expected is None:
        raise InputError(_start_field(start.kind if start else "latents"), "has no effect: the session began without")
    began = "went on from the memory of a clip" if expected.kind == "memory" else "began with a picture or video"
    other = "nothing was given" if found is None else f"found content {found.digest}"
    raise InputError(
        _start_field(expected.kind), f"is needed: the session {began}, content {expected.digest[:DIGITS]}; {other}"
    )


def _start_field(kind: Literal["latents", "memory"]) -> str:
    return "memory" if kind == "memory" else "image"


def play(engine: LiveEngine[Condition], replay: Replay) -> Iterator[LiveBlock]:
    """The blocks of a replay, as the session made them: the same latents to the bit, on the same machine.

    Raises InputError for a control that cannot be applied where it stands.
    """
    waiting = iter((*replay.controls, (replay.blocks + 1, Bookmark())))
    following = next(waiting)

    def gate() -> bool:
        nonlocal following
        while following[0] <= engine.made:
            engine.apply(following[1])
            following = next(waiting)
        return engine.made < replay.blocks

    yield from engine.blocks(gate)
