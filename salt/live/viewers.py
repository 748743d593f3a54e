"""Viewers of a live session: a bounded queue each, so that a slow one loses frames and never slows the rollout."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from .messages import Applied, Dropped, FrameBatch, Message, Pictured, Refused, State, Superseded

QUEUE_BATCHES = 4
MAX_RECEIPTS = 256
STALE_SECONDS = 2.0  # a viewer that has not played anything for so long does not hold the rollout back


class Viewer:
    """One viewer's queue. A thread (or an event loop, through `on_message`) takes messages out of it with `get`.

    name: of the viewer. batches: of frames at most, beyond which the oldest are dropped, counted and told.
    on_message: called from the session's threads whenever there is something to get; it must return at once.
    """

    def __init__(self, name: str, batches: int = QUEUE_BATCHES, on_message: Callable[[], None] | None = None) -> None:
        self.name, self.batches, self.on_message = name, batches, on_message
        self.closed = False
        self.dropped = 0  # by the queue
        self.skipped = 0  # by the viewer itself, as it says
        self.play_index = 0  # everything before it was played, or will not be
        self.last_played: float | None = None
        self.on_played: Callable[[], None] | None = None  # the session's, to look at its lead again
        self._frames: deque[FrameBatch] = deque()
        self._receipts: deque[Applied | Superseded | Refused] = deque(maxlen=MAX_RECEIPTS)
        self._state: State | None = None
        self._pictured: Pictured | None = None
        self._unreported = 0
        self._changed = threading.Condition()

    def put(self, message: FrameBatch | Applied | Superseded | Refused | Pictured | State) -> None:
        """Called by the session. Never waits."""
        with self._changed:
            if self.closed:
                return
            if isinstance(message, FrameBatch):
                self._frames.append(message)
                while len(self._frames) > self.batches:
                    lost = len(self._frames.popleft().frames)
                    self.dropped += lost
                    self._unreported += lost
            elif isinstance(message, State):
                self._state = message
            elif isinstance(message, Pictured):
                self._pictured = message
            else:
                self._receipts.append(message)
            self._changed.notify_all()
        if self.on_message is not None:
            self.on_message()

    def get(self, timeout: float | None = 0.0) -> Message | None:
        """The next message: receipts first, then the latest state, what was dropped, and frames in order.

        None when there is none after `timeout` seconds (None: without limit), or the viewer is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._waiting(), timeout)
            if self._receipts:
                return self._receipts.popleft()
            if self._pictured is not None:
                pictured, self._pictured = self._pictured, None
                return pictured
            if self._state is not None:
                state, self._state = self._state, None
                return state
            if self._unreported:
                lost, self._unreported = self._unreported, 0
                return Dropped(lost, self.dropped)
            return self._frames.popleft() if self._frames else None

    def _waiting(self) -> bool:
        single = self._state is not None or self._pictured is not None
        return bool(self._receipts or self._frames or self._unreported or single)

    def played(self, play_index: int, dropped: int = 0) -> None:
        """The frame of this running number is being shown; `dropped` frames were not shown since the last call."""
        with self._changed:
            self.play_index = max(self.play_index, play_index + 1)
            self.skipped += max(dropped, 0)
            self.last_played = time.perf_counter()
        if self.on_played is not None:
            self.on_played()

    def cut_over(self, play_index: int) -> None:
        """Frames before `play_index` are of no use any more: the session goes on from another place."""
        with self._changed:
            self._frames.clear()
            self.play_index = max(self.play_index, play_index)

    @property
    def paces(self) -> bool:
        """Whether this viewer is playing, so that the rollout keeps its lead over it."""
        return self.last_played is not None and time.perf_counter() - self.last_played < STALE_SECONDS

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._frames.clear()
            self._changed.notify_all()


class Viewers:
    """All viewers of a session. receipts: the latest that they were told, for a viewer that comes back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._viewers: tuple[Viewer, ...] = ()
        self._lost = 0  # by viewers that have left
        self.receipts: deque[Applied | Superseded | Refused] = deque(maxlen=MAX_RECEIPTS)

    def __iter__(self):
        return iter(self._viewers)

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self, viewer: Viewer) -> None:
        with self._lock:
            self._viewers = (*self._viewers, viewer)

    def remove(self, viewer: Viewer) -> None:
        viewer.close()
        with self._lock:
            if viewer in self._viewers:
                self._lost += viewer.dropped + viewer.skipped
                self._viewers = tuple(v for v in self._viewers if v is not viewer)

    def put(self, message: FrameBatch | Applied | Superseded | Refused | Pictured | State) -> None:
        if not isinstance(message, (FrameBatch, Pictured, State)):
            self.receipts.append(message)
        for viewer in self._viewers:
            viewer.put(message)

    @property
    def drops(self) -> int:
        """Frames that viewers were not sent or did not show."""
        return self._lost + sum(v.dropped + v.skipped for v in self._viewers)
