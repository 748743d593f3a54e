"""What a clip is told, and when: conditioning, and a schedule of prompts with what a switch does to the memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor

T = TypeVar("T")
Switch = Literal["keep", "recache", "cut"]
SWITCHES: tuple[Switch, ...] = ("keep", "recache", "cut")


@dataclass(frozen=True)
class Conditioning:
    """What a model call is conditioned on, beside the latents.

    text: [B, L, text_dim]. image: CLIP image embeddings [B, N, image_dim] (Wan I2V). channels: mask and condition
    latents [B, C', F, H, W] for the whole clip, concatenated to the noise along channels (Wan I2V).
    """

    text: Tensor
    image: Tensor | None = None
    channels: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        moved = {name: value.to(*args, **kwargs) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class PromptChange(Generic[T]):
    """From latent frame `frame` on, `conditioning` holds.

    switch: what happens to the memory (LongLive): `keep` it; `recache`, re-encode the recent clean latents under the
    new prompt; or `cut`, empty it. keep_sink: with `recache`, leave the sink frames as the old prompt wrote them.
    """

    frame: int
    conditioning: T
    switch: Switch = "keep"
    keep_sink: bool = False

    def __post_init__(self) -> None:
        if self.switch not in SWITCHES:
            raise ValueError(f"switch: found {self.switch!r}, expected one of {', '.join(SWITCHES)}")
        if self.frame < 0:
            raise ValueError(f"frame: found {self.frame}, expected 0 or more")


class PromptSchedule(Generic[T]):
    """Conditioning over latent frames. A change takes effect at the first block that starts at or after its frame."""

    def __init__(self, changes: Iterable[PromptChange[T]]) -> None:
        self.changes = tuple(sorted(changes, key=lambda c: c.frame))
        frames = [c.frame for c in self.changes]
        if not frames or frames[0] != 0 or len(set(frames)) != len(frames):
            raise ValueError(
                f"prompt schedule: found changes at frames {frames}, expected different ones, the first at 0"
            )

    @classmethod
    def of(cls, conditioning: T | PromptSchedule[T]) -> PromptSchedule[T]:
        """A schedule as it is, or one conditioning for the whole clip."""
        return conditioning if isinstance(conditioning, PromptSchedule) else cls([PromptChange(0, conditioning)])

    def switches(self, after: int, until: int) -> set[Switch]:
        """What the changes at latent frames after `after`, up to and with `until`, do to the memory."""
        return {c.switch for c in self.changes if after < c.frame <= until}

    def at(self, frame: int) -> PromptChange[T]:
        """The change that holds at latent frame `frame`."""
        return [c for c in self.changes if c.frame <= frame][-1]
