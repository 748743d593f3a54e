"""What every test room shares: seeds, skipping what this machine cannot run, and a root that is only a folder."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


class RootIsAFolder:
    """Stops pytest from importing the repository's own `__init__.py` as a package that holds the tests.

    That file is the door ComfyUI knocks on. pytest would import it before the first test under the checkout's folder
    name, which is often no Python name at all ("ComfyUI-Salt"), so that its relative imports fail.
    """

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    # Registered by hand: a conftest's own hooks are not asked about folders above it.
    config.pluginmanager.register(RootIsAFolder())


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
    """Tests draw the same numbers alone and in company."""
    torch.manual_seed(0)
