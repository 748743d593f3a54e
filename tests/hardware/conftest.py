"""The fake device that all tests here run on."""

import pytest
import torch

from benchmarks.ledger.fake_device import fake_cuda

RECORDED_ON = "2.13"  # the torch that constraints.txt pins: others launch other operations, and fake a device otherwise


@pytest.fixture
def device():
    if not torch.__version__.startswith(f"{RECORDED_ON}."):
        pytest.skip(f"found torch {torch.__version__}; the ledger's budgets are recorded on {RECORDED_ON}")
    with fake_cuda() as cuda:
        yield cuda
