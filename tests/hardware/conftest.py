"""The fake device that all tests here run on."""

import pytest

from benchmarks.ledger.fake_device import fake_cuda


@pytest.fixture
def device():
    with fake_cuda() as cuda:
        yield cuda
