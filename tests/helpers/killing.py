"""Processes that are killed, as `kill -9` would, while they write a file or folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def killed_while_writing(target: Path, write: Callable[[], object], after: float) -> bool:
    """Run `write` in a forked process, killed `after` seconds from its hidden file on; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            write()
        finally:
            os._exit(0)
    until = time.monotonic() + 30
    while not any(f"-{child}-" in path.name for path in target.parent.glob(f".{target.name}.*")):
        if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > until:
            return False
        time.sleep(0.0002)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
