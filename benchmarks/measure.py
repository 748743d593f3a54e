"""Shared by all benchmarks: wall time, peak memory, medians, and the results file."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def release_memory(device: torch.device) -> None:
    """Return unused memory to the system, so that one measurement does not include the memory of another."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Context manager that measures peak memory in MiB: resident memory on a CPU, torch's reserved memory on a GPU.

    (`allocated` would leave out the memory in which CUDA graphs work, which counts as free between replays.)
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.mib = device, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> PeakMemory:
        release_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def _poll(self) -> None:
        while not self._stop.wait(0.02):
            self.mib = max(self.mib, resident_mib())

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = torch.cuda.max_memory_reserved(self.device) / 2**20
        else:
            self._stop.set()
            self._thread.join()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def environment() -> dict:
    """Device, threads and torch version of a measurement."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


def write_json(path: Path, results: dict) -> None:
    """Write results with the environment they were measured in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment(), **results}, indent=1) + "\n")
