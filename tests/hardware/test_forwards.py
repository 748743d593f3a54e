"""One forward at true size over every kind of memory: launches, bytes, arithmetic, waits, and copies of the memory.

Run on fake tensors (`benchmarks.ledger`), so that nothing here depends on the machine. Streams, events, pinning and
kernels are stubs: that an asynchronous copy is ordered rightly, or a kernel is fast, is not shown.
"""

from types import SimpleNamespace

import pytest

from benchmarks.ledger.cases import BLOCK, FULL_CLIP, LATENT, SIZES, TEXT_TOKENS, ForwardCase, forward_costs
from salt.memory import PRECISIONS, MemoryPolicy
from salt.planning.arithmetic import forward_flops
from tests.helpers.ledger_budgets import check_budget

# Launches and GB of a forward (`check_budget`).
BUDGETS = {
    ForwardCase("full"): (1589, 77.8),
    ForwardCase("window:12"): (1589, 75.2),
    ForwardCase("sink:3,window:12"): (1589, 75.2),
    ForwardCase("relative:3,window:12"): (1589, 88.8),
    ForwardCase("blended:3,window:12"): (1589, 88.8),
    ForwardCase("cyclic:12"): (1589, 75.2),
    ForwardCase("sink:3,window:12,int8"): (1769, 81.8),
    ForwardCase("sink:3,window:12,fp8"): (1829, 86.9),
    ForwardCase("sink:3,window:12,int4"): (2249, 85.1),
    ForwardCase("sink:3,window:12,cpu"): (1589, 75.2),
    ForwardCase("sink:3,window:12,cpu", form="write"): (1591, 75.2),
    ForwardCase("sink:3,window:12,int8,cpu", form="write"): (2131, 96.0),
    ForwardCase("sink:3,window:12", form="fused"): (1951, 149.4),
    ForwardCase("sink:3,window:12", size="14B"): (2109, 321.4),
    ForwardCase("sink:3,window:12", graph=True): (1596, 75.2),
    # With all fused kernels: at most 45 GB for a block of 1.3B.
    ForwardCase("full", kernels=True): (654, 36.6),
    ForwardCase("sink:3,window:12", kernels=True): (654, 34.0),
    ForwardCase("relative:3,window:12", kernels=True): (684, 37.8),
    ForwardCase("sink:3,window:12,int8", kernels=True): (684, 37.9),
    ForwardCase("sink:3,window:12,fp8", kernels=True): (684, 37.9),
    ForwardCase("sink:3,window:12,int4", kernels=True): (684, 37.3),
    ForwardCase("sink:3,window:12,int8,cpu", form="write", kernels=True): (686, 38.4),
    ForwardCase("sink:3,window:12", form="fused", kernels=True): (746, 67.1),
    ForwardCase("sink:3,window:12", size="14B", kernels=True): (864, 139.9),
}
AS_SLOW = [c for c in BUDGETS if c.policy.startswith(("window", "cyclic", "blended"))]  # like others of the default run
KINDS = ("full", "window:12", "sink:3,window:12", "relative:3,window:12", "blended:3,window:12", "cyclic:12")
ALL = [
    ForwardCase(f"{kind}{'' if precision == 'model' else f',{precision}'}{home}", size, form, kernels)
    for kind in KINDS
    for precision in PRECISIONS
    for home in ("", ",cpu")
    for form in ("read", "write", "fused")
    for size in ("1.3B", "14B")
    for kernels in (False, True)
    if not (form == "fused" and kind.startswith("blended")) and (size == "1.3B" or form == "read")
]


def expected_flops(case):
    """By the arithmetic of the speed table, for one block or two."""
    config = {"attention_head_dim": 128, **SIZES[case.size]}
    tokens = LATENT[0] * LATENT[1] // 4
    keys = MemoryPolicy.parse(case.policy).window or FULL_CLIP
    work = forward_flops(SimpleNamespace(**config), BLOCK * tokens, keys * tokens, TEXT_TOKENS)
    blocks = 2 if case.form == "fused" else 1
    return {name: blocks * value for name, value in work.items()}


def check(case, found):
    assert not found.waits, "the host waits within a block"
    expected, policy = expected_flops(case), MemoryPolicy.parse(case.policy)
    if policy.window or case.form != "fused":  # without a window the second block sees more
        assert found.groups["attention"].flops == pytest.approx(expected["attention"], rel=1e-9)
    assert expected["linear"] <= found.groups["linear"].flops <= 1.01 * expected["linear"]
    if policy.precision == "model" and policy.residence == "device" and not policy.relative:
        write = "rotate_and_write" if case.kernels else "index_copy_"
        assert set(found.reads) == {"_scaled_dot_product_flash_attention", write}, "the memory is copied"
    if policy.residence == "cpu" and policy.window and case.form != "fused":
        # What is kept goes to the device once, and a block that is written comes back once. A blended sink is mixed on
        # the device with what is evicted, before a block is written, and comes back, too.
        frame, written = found.memory / policy.window, BLOCK if case.form == "write" else 0
        blended = policy.sink if policy.kind == "blended" and written else 0
        kept = policy.window - BLOCK
        assert found.costs.to_device == pytest.approx((kept + (blended and blended + BLOCK)) * frame, rel=0.01)
        assert found.costs.to_host == pytest.approx((written + blended) * frame, rel=0.01)
    per_layer = found.memory / SIZES[case.size]["num_layers"]
    activations = 1.5e9 if case.form == "fused" or case.size == "14B" else 0.6e9
    assert found.transient < activations + 4 * per_layer, "more than a layer of the memory is held twice"
    if case in BUDGETS:
        check_budget(found.costs.launches, found.costs.bytes, BUDGETS[case])


@pytest.mark.parametrize("case", [c for c in BUDGETS if c not in AS_SLOW], ids=str)
def test_forward(device, case):
    check(case, forward_costs(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", [*AS_SLOW, *(c for c in ALL if c not in BUDGETS)], ids=str)
def test_every_forward(device, case):
    check(case, forward_costs(case))
