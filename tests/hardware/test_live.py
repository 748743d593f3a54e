"""A live session at true width: controls between blocks cost no wait, no copy of the memory, and what they must.

The session's threads (viewers, recording) are not run: they work on frames that have arrived in main memory. Streams,
events and pinning are stubs here (`benchmarks.ledger.fake_device`).
"""

from dataclasses import replace

import pytest

from benchmarks.ledger.cases import BLOCK, DEEP, SHALLOW, SIZES
from benchmarks.ledger.live import STEERED, LiveCase, full_depth, live_phases
from salt.live.controls import Prompt, Rewind
from salt.live.history import SNAPSHOT_BLOCKS
from salt.memory import MemoryPolicy
from tests.helpers.ledger_budgets import check_budget

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

SHORT = LiveCase(
    7,
    {3: Prompt.of("another", blocks=1, method="slerp"), 5: Prompt.of("a third", switch="recache")},
    policy="sink:3,window:6",
    options={"nfe": 2},
)
# At the layers that are run: launches and GB of a block as any other, the first one of a blend, the first after it, and
# one after a recache.
SHORT_BUDGETS = {2: (433, 15.74), 3: (476, 16.07), 4: (446, 16.04), 5: (601, 26.13)}
# The same at full depth: a block over a full window, of a blend, after a recache, with guidance.
STEERED_BUDGETS = {8: (8059, 382.8), 6: (8096, 376.6), 9: (10707, 667.6), 12: (17191, 978.6)}


READERS = {"_scaled_dot_product_flash_attention", "index_copy_"}


def check(case, phases):
    layer_bytes = 2 * 2 * 1560 * SIZES["1.3B"]["num_attention_heads"] * 128  # of one frame, in bfloat16
    kept = SHALLOW * layer_bytes * MemoryPolicy.parse(case.policy).window
    for index, phase in enumerate(phases):
        assert not phase.waits, f"block {index}: the host waits"
        # Latents and flags of a block; the memory only where a snapshot is taken of it, for rewinding.
        snapshot = index > 0 and index % SNAPSHOT_BLOCKS == 0
        assert phase.costs.to_host <= 2e6 + snapshot * kept
        assert phase.costs.to_device <= 2e7, "the memory is fetched"
        if index >= MemoryPolicy.parse(case.policy).window // BLOCK:  # until then it grows
            assert phase.reads.keys() <= READERS | ({"index_select"} if snapshot else set()), "the memory is copied"


def test_session(device):
    """With a blend, a prompt switch that recaches, and a snapshot for rewinding."""
    phases = live_phases(SHORT)
    check(SHORT, phases)
    for index, budget in SHORT_BUDGETS.items():
        check_budget(phases[index].costs.launches, phases[index].costs.bytes, budget)


@pytest.mark.slow
def test_long_session(device):
    shallow, deep = (live_phases(STEERED, layers) for layers in (SHALLOW, DEEP))
    check(STEERED, shallow)
    for index, budget in STEERED_BUDGETS.items():
        check_budget(*full_depth(shallow[index], deep[index], STEERED.size), budget)


@pytest.mark.slow
def test_rewind_makes_blocks_again_without_a_wait(device):
    case = replace(SHORT, blocks=10, controls={8: Rewind(1.0)})
    phases = live_phases(case)
    check(case, phases[:8])
    assert not any(phase.waits for phase in phases)
