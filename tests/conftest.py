"""Settings of the whole test suite: seeds, threads, skipped GPU tests, and how pytest collects the repository root."""

import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported, and for processes that tests start: workers that each use all cores slow one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


class RootIsAFolder:
    """Stops pytest from importing the repository's own `__init__.py` as a package that holds the tests.

    That file is the entry point that ComfyUI loads. pytest would import it before the first test, under the name of the
    checkout's folder ("ComfyUI-Salt", which is no Python name), and its relative imports would fail.
    """

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    # Registered by hand: the hooks of a conftest file are not called for folders above it.
    config.pluginmanager.register(RootIsAFolder())
    # A script's background job ignores Ctrl-C, and so would what the tests end by it: they would never end.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`gpu` tests are skipped, not failed, where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same random numbers whether it runs alone or after others."""
    torch.manual_seed(0)
