"""The ledger itself: what it counts as a wait, a crossing, a launch, live bytes, and what it refuses."""

import pytest
import torch

from benchmarks.ledger.counting import Ledger


def counted(call):
    with Ledger() as ledger, torch.no_grad():
        call()
    return ledger.phase.costs


@pytest.mark.parametrize(
    ("call", "waits", "crossings"),
    [
        (lambda x, pinned: x.sum().item(), 1, 0),
        (lambda x, pinned: bool(x.any()), 1, 0),
        (lambda x, pinned: x.cpu(), 1, 1),
        (lambda x, pinned: x.to("cpu", non_blocking=True), 1, 1),
        (lambda x, pinned: pinned.copy_(x, non_blocking=True), 0, 1),
        (lambda x, pinned: pinned.copy_(x), 1, 1),
        (lambda x, pinned: x.copy_(pinned, non_blocking=True), 0, 1),
        (lambda x, pinned: torch.zeros(256, 256).to(x.device, non_blocking=True), 1, 1),
        (lambda x, pinned: torch.zeros(8).to(x.device, non_blocking=True), 0, 1),
        (lambda x, pinned: torch.zeros(8).to(x.device), 1, 1),
        (lambda x, pinned: torch.cuda.Event().synchronize(), 1, 0),
        (lambda x, pinned: x + 1, 0, 0),
    ],
)
def test_waits_and_crossings(device, call, waits, crossings):
    x, pinned = torch.zeros(64, 64, device=device), torch.empty(64, 64, pin_memory=True)
    costs = counted(lambda: call(x, pinned))
    assert (costs.waits, costs.crossings) == (waits, crossings)


def test_a_wait_is_placed_in_the_projects_own_code(device):
    from salt.acceleration.finite_check import FiniteFlag

    with Ledger() as ledger:
        FiniteFlag.of(torch.zeros(2, device=device)).wait()
    (place,) = ledger.phase.waits
    assert place.startswith("salt/acceleration/finite_check.py:") and place.endswith("(Event.synchronize)")


def test_launches_bytes_and_arithmetic(device):
    a, b = torch.zeros(32, 64, device=device), torch.zeros(64, 16, device=device)
    costs = counted(lambda: a @ b)
    assert (costs.launches, costs.flops, costs.bytes) == (1, 2 * 32 * 64 * 16, 4 * (32 * 64 + 64 * 16 + 32 * 16))
    memory, rows = torch.zeros(1, 100, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    costs = counted(lambda: memory.index_select(1, rows))
    assert costs.bytes == 2 * 2 * 8 * 4 + 16, "only the rows that are read, not the whole memory"
    assert counted(lambda: a[:4].transpose(0, 1)).launches == 0


def test_live_bytes_and_their_peak(device):
    with Ledger() as ledger:
        kept = torch.zeros(1024, device=device)
        passing = torch.zeros(4096, device=device)
        del passing
        assert (ledger.now, ledger.peak) == (4096, 4096 + 16384)
        with torch.cuda.stream(torch.cuda.Stream()):
            beside = torch.zeros(1024, device=device)
        assert ledger.reserved == 4096 + 16384 + 4096, "memory that another stream has freed is not lent"
    assert kept is not beside


def test_mixed_devices_are_an_error(device):
    with pytest.raises(RuntimeError, match="[Dd]evice"):
        torch.zeros(2, 2, device=device) @ torch.zeros(2, 2)
