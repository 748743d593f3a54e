"""Controls that wait for the next block: written by any thread, read by the one that makes blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from .controls import Control, Stop

MAX_EVENTS = 1_000_000  # of a session, controls that were superseded included
RUN_KINDS = ("pause", "resume", "step")  # of which the latest alone counts


@dataclass(frozen=True)
class Sent:
    """A control with its event id, who sent it, and when (`time.perf_counter`)."""

    event: int
    control: Control
    sender: str
    at: float


def slot(control: Control) -> str:
    """Controls of one slot supersede each other."""
    return "run" if control.kind in RUN_KINDS else control.kind


class Mailbox:
    """The latest control of every kind. `changed` is notified when there is a new one."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._waiting: dict[str, Sent] = {}
        self._events = 0

    def send(self, control: Control, sender: str) -> tuple[Sent, Sent | None]:
        """The control with its event id, and the one that it supersedes.

        Raises InputError after MAX_EVENTS, except for Stop.
        """
        with self.changed:
            if self._events >= MAX_EVENTS and not isinstance(control, Stop):
                raise InputError("control", f"found {MAX_EVENTS:,} controls in this session, which is the most")
            self._events += 1
            sent = Sent(self._events, control, sender, time.perf_counter())
            superseded = self._waiting.pop(slot(control), None)
            self._waiting[slot(control)] = sent
            self.changed.notify_all()
        return sent, superseded

    @property
    def urgent(self) -> bool:
        """Whether an immediate control waits."""
        return any(s.control.immediate for s in self._waiting.values())

    def waits_for(self, is_ready: Callable[[Control], bool]) -> bool:
        """Whether a control waits that is not ready."""
        with self.changed:
            return not all(is_ready(sent.control) for sent in self._waiting.values())

    def take(self, immediate_only: bool, is_ready: Callable[[Control], bool] = lambda control: True) -> list[Sent]:
        """The waiting controls that are ready in order of their events, immediate ones first; they no longer wait."""
        with self.changed:
            waiting = [s for s in self._waiting.values() if s.control.immediate or not immediate_only]
            taken = [s for s in waiting if is_ready(s.control)]
            for sent in taken:
                del self._waiting[slot(sent.control)]
        return sorted(taken, key=lambda s: (not s.control.immediate, s.event))
