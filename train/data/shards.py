"""Work on a list of files, in shards: what one process computes at a time, whatever the number of processes.

A shard holds the same items on every run, so the results do not depend on how many processes there are or on where an
earlier run was interrupted (a row's rounding depends on the batch that it is computed in).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from salt.io.launcher import process_count, process_rank

Item = TypeVar("Item")


def own_shards(paths: Sequence[Path], size: int) -> list[range]:
    """The shards of `size` indices of `paths` that fall to this process, without those whose files all exist."""
    shards = [range(start, min(start + size, len(paths))) for start in range(0, len(paths), size)]
    own = shards[process_rank() :: process_count()]
    return [shard for shard in own if not all(paths[i].exists() for i in shard)]


def with_progress(items: Sequence[Item], what: str, unit: str = "shards") -> Iterator[Item]:
    """The items, with a line on time left after each is finished."""
    who = f" (process {process_rank()} of {process_count()})" if process_count() > 1 else ""
    began = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        left = timedelta(seconds=round((time.monotonic() - began) / done * (len(items) - done)))
        print(f"{what}: {done} of {len(items)} {unit}{who}, left {left}", flush=True)
