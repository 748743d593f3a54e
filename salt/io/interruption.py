"""Signals that ask a command to end, taken as Ctrl-C is: what is finished is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# What `docker stop`, systemd, SLURM, `kill` and `timeout` send, and a terminal that is closed.
TERMINATION_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], object]


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C has ended the command. signal: its number."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(signal.Signals(number).name)


@contextmanager
def signals_handled_by(handler: Handler, numbers: tuple[int, ...]) -> Iterator[None]:
    """While open, `handler` takes the signals; not those that are ignored (nohup), and only in the main thread."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """While open, a termination signal raises `Terminated`, a KeyboardInterrupt, so that files are finished and kept.

    Later ones are ignored, as the first is being obeyed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in TERMINATION_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    with signals_handled_by(interrupt, TERMINATION_SIGNALS):
        yield


def exit_code(error: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (error.signal if isinstance(error, Terminated) else signal.SIGINT)
