"""Conditioning of the model, and schedules of it over the latent frames of a clip (prompt changes)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from torch import Tensor

from .errors import InputError

T = TypeVar("T")
Switch = Literal["keep", "recache", "cut"]
SWITCHES: tuple[Switch, ...] = ("keep", "recache", "cut")


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
    (LongLive); or `cut`, empty it. keep_sink: with `recache`, leave the sink frames as the old prompt wrote them.
    Raises InputError for an unknown switch or a negative frame.
    """

    frame: int
    conditioning: T
    switch: Switch = "keep"
    keep_sink: bool = False

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
