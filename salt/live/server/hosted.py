"""The sessions of a server: by ids that cannot be guessed, each with its viewers, of whom one steers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ...errors import InputError
from ..messages import Applied, Dropped, Pictured, Refused, State, Superseded, message_values
from .frames import EncodedBatches, PictureFormat
from .stream import SharedStream

if TYPE_CHECKING:
    from ..session import LiveSession

Message = dict[str, object]  # one JSON message to a viewer
Receipt = Applied | Superseded | Refused | Dropped | Pictured
MAX_VIEWERS = 64


class SteeringRight:
    """Which viewer's controls are taken: the first one's; then whoever it hands over to.

    Who asks while another steers gets it when that one releases it. When the viewer who steers leaves, the first who
    asked gets it, else the one who has been there longest.
    """

    def __init__(self) -> None:
        self.steerer: str | None = None
        self.asking: list[str] = []
        self._present: list[str] = []

    def join(self, viewer: str) -> None:
        self._present.append(viewer)
        if self.steerer is None and len(self._present) == 1:
            self.steerer = viewer

    def leave(self, viewer: str) -> None:
        self._present.remove(viewer)
        self.asking = [other for other in self.asking if other != viewer]
        if self.steerer == viewer:
            self._hand_over([*self.asking, *self._present])

    def ask(self, viewer: str) -> None:
        if self.steerer is None:
            self.steerer = viewer
        elif viewer not in (self.steerer, *self.asking):
            self.asking.append(viewer)

    def release(self, viewer: str) -> None:
        """Hand the steering to whoever asked first. Nobody has it then if nobody asked."""
        self.asking = [other for other in self.asking if other != viewer]
        if self.steerer == viewer:
            self._hand_over(self.asking)

    def _hand_over(self, candidates: list[str]) -> None:
        self.steerer = candidates[0] if candidates else None
        self.asking = [other for other in self.asking if other != self.steerer]


class HostedSession:
    """A session with its viewers. Used from one event loop.

    executor: encodes pictures; one thread, so that the rollout keeps the processor.
    """

    def __init__(self, session: LiveSession, executor: ThreadPoolExecutor, format: PictureFormat) -> None:
        self.id = secrets.token_urlsafe(16)
        self.session = session
        self.batches = EncodedBatches(executor, format)
        self.stream = SharedStream(session)
        self.steering = SteeringRight()
        self._viewers: dict[str, Callable[[Message], None]] = {}
        self._closing: dict[str, Callable[[str], None]] = {}

    def join(self, viewer: str, tell: Callable[[Message], None], close: Callable[[str], None]) -> None:
        """A viewer has come. tell: queues a message to it; close: ends its connection, with the reason.

        Raises InputError where there are too many.
        """
        if len(self._viewers) >= MAX_VIEWERS:
            raise InputError("viewers", f"found {MAX_VIEWERS} of them, which is all that this session takes")
        self.steering.join(viewer)
        self._tell_all_state()  # whoever comes finds it in its welcome
        self._viewers[viewer], self._closing[viewer] = tell, close

    def leave(self, viewer: str) -> None:
        del self._viewers[viewer], self._closing[viewer]
        before = self.steering.steerer
        self.steering.leave(viewer)
        if self.steering.steerer != before:
            self.tell_steering()
        self._tell_all_state()

    def tell_steering(self) -> None:
        steering = self.steering
        for viewer, tell in self._viewers.items():
            you = viewer == steering.steerer
            tell({"type": "steering", "viewer": steering.steerer, "you": you, "asking": list(steering.asking)})

    def state(self) -> Message:
        return self.as_sent(self.session.state())

    def as_sent(self, message: Receipt | State) -> Message:
        """A message of the session as viewers get it: a state also says what only the server knows."""
        values = message_values(message)
        if isinstance(message, State):
            values |= {"viewers": len(self._viewers), "steerer": self.steering.steerer}
        return values

    def _tell_all_state(self) -> None:
        if self._viewers:
            state = self.state()
            for tell in self._viewers.values():
                tell(state)

    def close(self, reason: str) -> None:
        """End all connections. The session itself is its owner's."""
        for close in list(self._closing.values()):
            close(reason)
        self.stream.close()


class LiveRegistry:
    """The sessions that routes serve. format: of the pictures that viewers get."""

    def __init__(self, format: PictureFormat = "jpeg") -> None:
        self._format: PictureFormat = format
        self._executor = ThreadPoolExecutor(1, "salt-live-pictures")
        self._sessions: dict[str, HostedSession] = {}

    def add(self, session: LiveSession) -> str:
        """Serve a session from now on. Returns its id."""
        hosted = HostedSession(session, self._executor, self._format)
        self._sessions[hosted.id] = hosted
        return hosted.id

    def remove(self, id: str, reason: str = "the session has ended") -> None:
        """Serve a session no longer; its viewers get the reason. Called in the event loop, as `close`."""
        self._sessions.pop(id).close(reason)

    def find(self, id: str) -> HostedSession | None:
        return self._sessions.get(id)

    def __iter__(self) -> Iterator[HostedSession]:
        return iter(list(self._sessions.values()))

    def close(self, reason: str = "the server has ended") -> None:
        for id in list(self._sessions):
            self.remove(id, reason)
        self._executor.shutdown(cancel_futures=True)
