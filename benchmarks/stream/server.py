"""The server process of a measurement: `salt live` as users start it, or the same session on random weights."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO
from urllib.parse import urlsplit

import psutil

PROMPT = "a fast red circle moving right"
START_SECONDS = 600.0  # for a student whose first block is compiled


class ServerError(RuntimeError):
    """The server did not start, or has ended early."""

    __module__ = "benchmarks.stream.server"


class Server:
    """A live session's server in a process of its own. address: of its routes. started: `time.perf_counter`."""

    def __init__(self, command: Sequence[str], log: IO[str]) -> None:
        self._log = log
        self.started = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.process = psutil.Process(self._process.pid)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.match(r"http://\S+", line)
        if found is None:
            raise ServerError(f"the server did not start: {line.strip() or self._tail()}")
        parts = urlsplit(found[0])
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"

    def _tail(self) -> str:
        self._process.wait(10)
        self._log.seek(0)
        return self._log.read()[-400:].strip()

    def resident_mib(self) -> float:
        """Of the server's own process, without the encoders that it has started."""
        return self.process.memory_info().rss / 2**20

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def close(self) -> int:
        """End it as Ctrl-C does. Returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(2)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def salt_live(options: Sequence[str]) -> list[str]:
    """The command line of `salt live` with the embedded student."""
    return [sys.executable, "-m", "salt.cli", "live", PROMPT, "--port", "0", "--device", "cpu", *options]


def random_live(options: Sequence[str]) -> list[str]:
    """The command line of a server with random weights of Wan 2.1 1.3B, on a GPU."""
    return [sys.executable, "-m", "benchmarks.stream.random_weights", *options]
