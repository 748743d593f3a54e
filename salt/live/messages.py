"""What a live session tells its viewers: frames, receipts of controls, its state, and frames that were dropped."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from .adapters import LoraStrength


@dataclass(frozen=True)
class FrameBatch:
    """The decoded frames of a block: uint8 [T, H, W, 3].

    generation: rises with every rewind, fork and goto. branch, block: where it belongs, the block counted along the
    branch from 0. event: the latest control that was applied before it. first_frame: pixel frame of the first of
    `frames` along the branch. play_index: the same in the running count of all frames that this session has made.
    cutover: the first batch after a rewind, fork, goto or cut.
    """

    generation: int
    branch: int
    block: int
    event: int
    first_frame: int
    play_index: int
    cutover: bool
    frames: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Applied:
    """A control took effect: `frame` is the first pixel frame made under it, along the branch; ms since it was sent."""

    event: int
    control: str
    branch: int
    block: int
    frame: int
    generation: int
    ms: float


@dataclass(frozen=True)
class Superseded:
    """A control had no effect, as a later one of its kind, `by`, came before the next block."""

    event: int
    by: int


@dataclass(frozen=True)
class Refused:
    """A control could not be applied when its turn came. field, message: as of `InputError`."""

    event: int
    field: str
    message: str


@dataclass(frozen=True)
class Pictured:
    """The block whose first pixel frame is `frame` was made from pictures; the newest is of the viewer `sender`, at
    `t` milliseconds of that viewer's clock."""

    generation: int
    branch: int
    frame: int
    sender: str
    t: float


@dataclass(frozen=True)
class Dropped:
    """This viewer was too slow: `frames` frames were left out now, `total` since it subscribed."""

    frames: int
    total: int


@dataclass(frozen=True)
class PromptInEffect:
    """A prompt and its share; `frame`: pixel frame along the branch from which it holds."""

    text: str
    weight: float = 1.0
    frame: int = 0


@dataclass(frozen=True)
class BookmarkState:
    id: int
    name: str
    branch: int
    frame: int


@dataclass(frozen=True)
class BranchState:
    """fork_frame, frames: pixel frames along the branch from the clip's beginning. prompts: the latest of them."""

    id: int
    parent: int | None
    fork_frame: int
    frames: int
    prompts: tuple[PromptInEffect, ...]


@dataclass(frozen=True)
class State:
    """Where a session stands. status: warming, playing, paused, stopped or failed; message: why it failed.

    block, frame, seconds: of the end of the branch, where the next block will begin. rewind_from: seconds; a rewind
    goes back so far. drops: frames that viewers were not sent or did not show. loras: all that are loaded, 0 where
    they are off. pictures: where those come from that blocks may start from, empty where none can; strength: how far
    they may be changed.
    """

    status: str
    branch: int
    block: int
    frame: int
    seconds: float
    generation: int
    prompts: tuple[PromptInEffect, ...]
    nfe: int
    guidance: float
    policy: str
    seed: int
    pace: str
    fps_made: float
    lead_blocks: float
    drops: int
    bookmarks: tuple[BookmarkState, ...]
    branches: tuple[BranchState, ...]
    rewind_from: float
    viewers: int
    recording: bool
    message: str = ""
    loras: tuple[LoraStrength, ...] = ()
    strength: float = 1.0
    pictures: Literal["", "camera", "file"] = ""


Message = FrameBatch | Applied | Superseded | Refused | Dropped | Pictured | State
NAMES = {
    Applied: "applied", Superseded: "superseded", Refused: "refused", Dropped: "dropped", Pictured: "pictured",
    State: "state",
}  # fmt: skip


def message_values(message: Applied | Superseded | Refused | Dropped | Pictured | State) -> dict[str, object]:
    """The message as a JSON object, its name in `type`."""
    return {"type": NAMES[type(message)], **asdict(message)}
