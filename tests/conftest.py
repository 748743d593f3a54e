"""What every test room shares: seeds, and skipping what this machine cannot run."""

import pytest
import torch


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
