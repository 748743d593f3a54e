"""Conditioning of the model, schedules of it over the latent frames of a clip, and timelines of prompts as text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from torch import Tensor

from .errors import InputError
from .io.prompt_files import split_lines

if TYPE_CHECKING:
    from .memory import MemoryPolicy

T = TypeVar("T")
Switch = Literal["keep", "recache", "cut", "shot"]
SWITCHES: tuple[Switch, ...] = ("keep", "recache", "cut", "shot")
# Words of a timeline and of the command line: the switch, and whether the sink is kept.
SWITCHES_BY_WORD: dict[str, tuple[Switch, bool]] = {
    "keep": ("keep", False),
    "recache": ("recache", False),
    "cut": ("cut", False),
    "shot": ("shot", False),
    "recache-sink": ("recache", True),
}
SWITCH_WORDS = "|".join(SWITCHES_BY_WORD)


_TIMELINE_LINE = re.compile(
    r"^\s*(?P<seconds>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:s(?![a-z]))?\s*"
    r"(?P<switch>[a-z]+(?:-[a-z]+)?)?\s*[:\uff1a]\s*(?P<text>.*)$",
    re.IGNORECASE | re.DOTALL,
)
# What someone means as a time, and is none of ours: 0,5 or -1 or 00:05 before the colon.
_OTHER_TIME = re.compile(
    r"^\s*(?P<time>[-+\u2212]?(?:[0-9][0-9.,e+-]*:[0-9]{1,2}(?::[0-9]{1,2})?(?:[.,][0-9]+)?|[0-9.,]*[0-9][0-9.,e+-]*))"
    rf"\s*s?\s*(?:{SWITCH_WORDS})?\s*[:\uff1a]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Conditioning:
    """What a model call is conditioned on, besides the noisy latents.

    text: prompt embeddings [B, L, text_dim]. image: CLIP image embeddings [B, N, image_dim] (Wan 2.1 I2V). channels:
    mask and condition latents [B, C', F, H, W] of the whole clip, concatenated to the noise along channels (I2V).
    """

    text: Tensor
    image: Tensor | None = None
    channels: Tensor | None = None


@dataclass(frozen=True)
class PromptChange(Generic[T]):
    """From latent frame `frame` (0 or more) on, the model is conditioned on `conditioning`.

    switch: what happens to the memory: `keep` it; `recache`, re-encode the recent clean latents under the new prompt
    (LongLive); `cut`, empty it; or `shot`, begin a new shot (LongLive 2.0; a memory of kind `shots`). keep_sink: with
    `recache`, leave the sink frames as the old prompt wrote them. first_block: what the first block of a shot is
    conditioned on instead.
    Raises InputError for an unknown switch or a negative frame.
    """

    frame: int
    conditioning: T
    switch: Switch = "keep"
    keep_sink: bool = False
    first_block: T | None = None

    def __post_init__(self) -> None:
        if self.switch not in SWITCHES:
            raise InputError("switch", f"found {self.switch!r}, expected one of {', '.join(SWITCHES)}")
        if self.frame < 0:
            raise InputError("frame", f"found {self.frame}, expected 0 or more")


class PromptSchedule(Generic[T]):
    """Conditioning over the latent frames of a clip: changes in order of their frames.

    A change takes effect at the first block that starts at its latent frame or later.
    Raises InputError unless the frames are distinct and the first is 0.
    """

    def __init__(self, changes: Iterable[PromptChange[T]]) -> None:
        self.changes = tuple(sorted(changes, key=lambda c: c.frame))
        frames = [c.frame for c in self.changes]
        if not frames or frames[0] != 0 or len(set(frames)) != len(frames):
            raise InputError("changes", f"found frames {frames}, expected distinct ones, the first at 0")

    @classmethod
    def of(cls, conditioning: T | PromptSchedule[T]) -> PromptSchedule[T]:
        """A schedule as it is, or one conditioning for the whole clip."""
        return conditioning if isinstance(conditioning, PromptSchedule) else cls([PromptChange(0, conditioning)])

    def switches(self, after: int, until: int) -> set[Switch]:
        """Switches of the changes at latent frames above `after` and up to `until`, `until` included."""
        return {c.switch for c in self.changes if after < c.frame <= until}

    def at(self, frame: int) -> PromptChange[T]:
        """The change in effect at latent frame `frame`."""
        return [c for c in self.changes if c.frame <= frame][-1]


def blend_changes(
    old: Conditioning, new: Conditioning, frame: int, blocks: int = 4, frames_per_block: int = 3
) -> list[PromptChange[Conditioning]]:
    """A prompt that changes over `blocks` blocks from latent frame `frame` on: texts lerp(old, new, i / (blocks - 1)).

    The first block still has the old text, so that one block changes at once. Source: Krea realtime.
    Raises InputError for less than one block.
    """
    if blocks < 1:
        raise InputError("blocks", f"found {blocks}, expected 1 or more")
    shares = [i / (blocks - 1) for i in range(1, blocks)] or [1.0]
    first = frame + frames_per_block if blocks > 1 else frame
    return [
        PromptChange(
            first + i * frames_per_block, new if share == 1 else replace(old, text=old.text.lerp(new.text, share))
        )
        for i, share in enumerate(shares)
    ]


@dataclass(frozen=True)
class TimedPrompt:
    """From `seconds` of the clip on, `text` is the prompt. switch, keep_sink: as for `PromptChange`."""

    seconds: float
    text: str
    switch: Switch = "keep"
    keep_sink: bool = False


def keeps_no_sink(policy: MemoryPolicy, changes: Iterable[PromptChange[T]]) -> bool:
    """Whether a change would keep the sink of a memory that holds none, which has no effect."""
    return (not policy.sink or policy.keeps_last_step) and any(change.keep_sink for change in changes)


def parse_timeline(text: str) -> tuple[TimedPrompt, ...]:
    """Prompts of a timeline, one per line, in order of time.

        0: a red circle moving right
        3.5 recache: a blue circle moving right
        7 cut: a green triangle at night

    A line is SECONDS [keep|recache|cut|shot|recache-sink]: PROMPT. The word is the `switch` of the change, recache-sink
    a recache that keeps the sink; without it the memory is kept. A first line without a time starts at 0.
    Raises InputError with the number of a line that cannot be read or whose time does not rise from 0, and for a text
    without a prompt.
    """
    prompts: list[TimedPrompt] = []
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        found, other = _TIMELINE_LINE.match(line), _OTHER_TIME.match(line)
        if other is not None and (found is None or other["time"] != found["seconds"]):
            raise InputError(
                "timeline", f"line {number}: found the time {other['time']!r}, expected seconds from 0 on, as 3.5"
            )
        if found is None and not prompts:
            prompts.append(TimedPrompt(0.0, line.strip()))
            continue
        if found is None:
            raise InputError(
                "timeline", f"line {number}: found {line.strip()[:80]!r}, expected SECONDS [{SWITCH_WORDS}]: PROMPT"
            )
        seconds, word = float(found["seconds"]), (found["switch"] or "keep").lower()
        if word not in SWITCHES_BY_WORD:
            raise InputError("timeline", f"line {number}: found {word!r}, expected {', '.join(SWITCHES_BY_WORD)}")
        if not found["text"].strip():
            raise InputError("timeline", f"line {number}: found no prompt after {found['seconds']} s")
        if prompts and seconds <= prompts[-1].seconds:
            raise InputError(
                "timeline", f"line {number}: found {seconds:g} s after {prompts[-1].seconds:g} s, expected later"
            )
        if not prompts and seconds:
            raise InputError("timeline", f"line {number}: found {seconds:g} s, expected the first prompt at 0")
        prompts.append(TimedPrompt(seconds, found["text"].strip(), *SWITCHES_BY_WORD[word]))
    if not prompts:
        raise InputError("timeline", "found no prompt, expected at least one line")
    return tuple(prompts)
