"""What the tests of the live page share."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.live.page_driver import chromium

    with chromium() as started:
        yield started
