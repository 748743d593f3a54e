"""A simulated viewer's playback: which frame is due when, what is late, and what is left out. The caller has the clock.

Frames play at the clip's rate. Playback begins, and begins again after it has run dry, when START_SECONDS of frames are
there or have been waited for. Frames older than an applied control are left out as the page does, beyond three of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

START_SECONDS = 0.34  # 0.45 of a block of 12 frames, as the page
MOST_FRAMES = 48  # that wait to be shown, of a session that runs faster than it is played
KEPT_FRAMES = 3  # of those older than an applied control


@dataclass(frozen=True)
class Batch:
    """A message of frames. index: play index of its first; frame: the same along the branch."""

    generation: int
    event: int
    frame: int
    index: int
    count: int


@dataclass
class Player:
    """underruns: times that a frame was due and none was there; dry_seconds: how long in all. late: frames that came
    after they were due. played: index of the latest frame shown."""

    fps: float
    underruns: int = 0
    dry_seconds: float = 0.0
    late: int = 0
    shown: int = 0
    left_out: int = 0
    played: int | None = None
    shown_events: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=64))  # event, when first shown
    _queue: deque[tuple[int, int, int, int]] = field(default_factory=deque)  # generation, frame, index, event
    _due: float | None = None
    _dry_since: float | None = None
    _waiting_since: float | None = None
    _cut: tuple[int, int] | None = None

    def arrived(self, batch: Batch, now: float) -> None:
        self.advance(now)
        if self._dry_since is not None:
            dry = now - self._dry_since
            self.dry_seconds += dry
            self.late += min(batch.count, 1 + int(dry * self.fps))
            self._dry_since = None
        if self._queue and self._queue[0][0] < batch.generation:
            self.left_out += len(self._queue)
            self._queue.clear()
            self._due = None
        if not self._queue:
            self._waiting_since = now
        self._queue += ((batch.generation, batch.frame + i, batch.index + i, batch.event) for i in range(batch.count))
        self._leave_out()
        while len(self._queue) > MOST_FRAMES:
            self._queue.popleft()
            self.left_out += 1
        self.advance(now)

    def applied(self, generation: int, frame: int) -> None:
        """A control was applied; `frame`: the first made under it, along the branch."""
        self._cut = (generation, frame)
        self._leave_out()

    def _leave_out(self) -> None:
        if self._cut is None:
            return
        older = sum((generation, frame) < self._cut for generation, frame, _, _ in self._queue)
        if older == len(self._queue):
            return  # the first frame under it is not here
        for _ in range(older - KEPT_FRAMES):
            self._queue.popleft()
            self.left_out += 1
        self._cut = None

    def advance(self, now: float) -> None:
        """Show what is due until `now`."""
        if self._due is None:
            ready = len(self._queue) >= START_SECONDS * self.fps
            waited = self._waiting_since is not None and now - self._waiting_since >= START_SECONDS
            if not self._queue or not (ready or waited):
                return
            self._due = now
        while self._due is not None and now >= self._due:
            if not self._queue:
                self.underruns += 1
                self._dry_since, self._due = self._due, None
                return
            _, _, self.played, event = self._queue.popleft()
            if not self.shown_events or event > self.shown_events[-1][0]:
                self.shown_events.append((event, self._due))
            self.shown += 1
            self._due += 1 / self.fps
