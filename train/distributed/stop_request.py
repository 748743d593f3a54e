"""Ends a training run between two updates when a signal asks for it, in all processes after the same update."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from types import FrameType, TracebackType

import torch

from salt.io.interruption import TERMINATION_SIGNALS, Terminated, signals_handled_by
from salt.io.launcher import is_main_process
from train.distributed.launch import mean_over_processes


class StopRequest:
    """While open, Ctrl-C and termination signals are noted. A second Ctrl-C ends the run at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._stack = ExitStack()

    def __enter__(self) -> StopRequest:
        self._stack.enter_context(signals_handled_by(self._note, (signal.SIGINT, *TERMINATION_SIGNALS)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if is_main_process():
            print("stopping after this update, with a checkpoint (Ctrl-C twice: at once)", file=sys.stderr, flush=True)

    def requested_anywhere(self, device: torch.device) -> bool:
        """Whether a process was asked to stop; every process has to call it after the same update."""
        return mean_over_processes(float(self.signal is not None), device) > 0

    def interrupt(self) -> None:
        """End the run as the signal would have: raises KeyboardInterrupt or Terminated."""
        if self.signal is None or self.signal == signal.SIGINT:  # None: another process was asked
            raise KeyboardInterrupt
        raise Terminated(self.signal)
