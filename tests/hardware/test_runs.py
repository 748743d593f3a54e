"""Whole runs of the pipeline at true size: launches, bytes, where the host waits, and the peak of every phase.

Peaks are of live tensors; the CUDA context, kernels' workspaces and fragmentation come on top.
"""

from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKLWan

from benchmarks.ledger.runs import RunCase, RunCosts, run_at, run_costs, tiled_decode_costs
from benchmarks.ledger.table import RUNS
from salt.models.streaming_vae import Tiling
from tests.helpers.ledger_budgets import check_budget

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

WINDOWED = {"policy": "sink:3,window:6", "decoder": "none", "blocks": 3}
ONE = {"num_inference_steps": 1}
# Three blocks at two layers, decoded or not.
SHORT = {
    "plain": RunCase(**WINDOWED, options=ONE),
    "start image": RunCase(**WINDOWED, image=True, options=ONE),
    "guidance": RunCase(**WINDOWED, options={**ONE, "guidance_scale": 3.0, "negative_prompt": "another"}),
    "prompt change with recache": RunCase(
        **WINDOWED, options={**ONE, "prompt_schedule": ((1.2, "another", "recache"),)}
    ),
    "blended": RunCase(**{**WINDOWED, "policy": "blended:3,window:6"}, options=ONE),
    "fused": RunCase(**WINDOWED, options={**ONE, "fuse": True}),
    "overwrite": RunCase(**{**WINDOWED, "policy": "overwrite:1,window:6"}, options=ONE),
    "rebuild, frames encoded again": RunCase(policy="rebuild:3", blocks=3, options=ONE),
    "TAEHV": RunCase(**{**WINDOWED, "decoder": "taehv"}, options=ONE),
    "low memory": RunCase("low memory", **WINDOWED, options=ONE),
    "LongLive 2, a shot": RunCase(
        size="5B", policy=None, decoder="none", blocks=3, options={"prompt_schedule": ((1.2, "another", "shot"),)}
    ),
    "AnyFlow": RunCase(**{**WINDOWED, "policy": "far:2"}, options=ONE),
}
FAST = ("start image", "guidance", "prompt change with recache", "blended", "TAEHV", "LongLive 2, a shot")
# Launches and GB of the whole run without decoding, and of decoding.
SHORT_BUDGETS = {
    "plain": ((945, 31.54), (3, 0.00)),
    "start image": ((1381, 51.95), (3, 0.00)),
    "guidance": ((1774, 63.07), (3, 0.00)),
    "prompt change with recache": ((1113, 41.93), (3, 0.00)),
    "blended": ((969, 33.50), (3, 0.00)),
    "fused": ((729, 31.35), (3, 0.00)),
    "overwrite": ((543, 15.89), (3, 0.00)),
    "rebuild, frames encoded again": ((1861, 89.74), (3984, 931.14)),
    "TAEHV": ((945, 34.11), (1059, 40.54)),
    "low memory": ((441, 13.99), (3, 0.00)),
    "LongLive 2, a shot": ((2259, 233.78), (3, 0.02)),
    "AnyFlow": ((1086, 32.09), (3, 0.00)),
}
PLACES = {"salt/models/fingerprint.py", "salt/pipeline/prompts.py"}  # once, before the first block
BLOCK_ENDS = {"salt/models/async_decoder.py": 1, "salt/acceleration/finite_check.py": 2}  # of every finished block


class Budget(NamedTuple):
    """peak: GB, all phases. block, decode: launches and GB of the last block and its decoding; run: of the whole run,
    decoding included."""

    peak: float
    block: tuple[float, float]
    decode: tuple[float, float]
    run: tuple[float, float]


BUDGETS = {
    "exact": Budget(10.80, (7999, 376.8), (1342, 338.6), (47550, 3470.4)),
    "exact, VAE in float32": Budget(14.79, (7999, 376.8), (1140, 467.4), (46540, 4080.9)),
    "exact, TAEHV": Budget(7.00, (7999, 376.8), (353, 13.5), (42647, 1929.8)),
    "exact, guidance": Budget(14.36, (15959, 752.7), (1342, 338.6), (87503, 5328.0)),
    "exact, UMT5 on the device": Budget(22.17, (7999, 376.8), (1342, 338.6), (49019, 3498.6)),
    "exact, start image": Budget(10.81, (7999, 376.8), (1342, 338.6), (49887, 3632.3)),
    "exact, no decoding": Budget(6.62, (7999, 375.9), (1, 0.0), (40887, 1857.7)),
    "exact, prompt change with recache, no decoding": Budget(7.36, (10703, 667.5), (1, 0.0), (43591, 2149.3)),
    "exact, blended memory, no decoding": Budget(6.82, (8359, 455.1), (1, 0.0), (41253, 2072.7)),
    "exact, AnyFlow, no decoding": Budget(7.71, (8409, 482.5), (1, 0.0), (42599, 1948.2)),
    "exact, LongLive 2 (5B, 1280x704, UniPC)": Budget(32.38, (8002, 1109.0), (3688, 1670.8), (59295, 13677.1)),
    "context pass fused, no decoding": Budget(6.84, (6771, 375.0), (1, 0.0), (35975, 1854.1)),
    "exact, rebuilt memory, frames encoded again": Budget(10.81, (9325, 642.3), (1342, 338.6), (52350, 4292.6)),
    "low memory": Budget(5.79, (2911, 190.3), (16108, 672.9), (96066, 4087.2)),
    "low memory, prompt encoded": Budget(5.17, (2911, 189.4), (1, 0.0), (17538, 913.2)),
    "14B, exact": Budget(48.81, (10599, 1607.8), (1342, 338.6), (60840, 9553.1)),
    "14B, low memory, no decoding": Budget(38.00, (3831, 771.7), (1, 0.0), (21160, 3599.7)),
    "14B, lowest memory, no decoding": Budget(20.06, (10974, 1133.1), (1, 0.0), (56452, 5425.5)),
    "14B, layer by layer, no decoding": Budget(7.93, (4574, 774.4), (1, 0.0), (23160, 3619.5)),
}


def places(waits):
    """How often the host waits in each file."""
    found = {}
    for place, count in waits.items():
        file = place.partition(":")[0]
        found[file] = found.get(file, 0) + count
    return found


def check(found: RunCosts, blocks: int) -> None:
    assert set(places(found.all_waits["start"])) <= PLACES, "the host waits before the first block"
    within = {name: waits for name, waits in found.all_waits.items() if name not in ("start", "text")}
    expected = {file: count * blocks for file, count in BLOCK_ENDS.items()}
    assert {name: places(waits) for name, waits in within.items()} == {"denoise": expected, "decode": {}}, (
        "the host waits within a block"
    )


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SHORT])
def test_short_run(device, name):
    found = run_at(SHORT[name])
    check(found, SHORT[name].blocks)
    decode = found.whole["decode"]
    rest = found.total - decode
    check_budget(rest.launches, rest.bytes, SHORT_BUDGETS[name][0])
    if SHORT[name].decoder != "none":
        check_budget(decode.launches, decode.bytes, SHORT_BUDGETS[name][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_run_at_full_depth(device, name):
    case, budget = RUNS[name], BUDGETS[name]
    found = run_costs(case)
    if case.preset != "layer by layer":  # whose blocks are waited for, one after another
        check(found, case.blocks)
    peak = max(value for phase, value in found.peaks.items() if phase != "decode" or case.decoder != "none")
    print(f"peak {peak / 1e9:.2f}")
    assert peak / 1e9 == pytest.approx(budget.peak, rel=0.02)
    check_budget(found.block.launches, found.block.bytes, budget.block)
    check_budget(found.total.launches, found.total.bytes, budget.run)
    if case.decoder != "none":
        check_budget(found.decode.launches, found.decode.bytes, budget.decode)


# Launches and GB of decoding, Wan's VAE in the middle of a clip.
def test_whole_decode(device):
    phase = tiled_decode_costs(None)
    assert not phase.waits and not phase.crossings
    check_budget(phase.costs.launches, phase.costs.bytes, (1342, 335.6))


@pytest.mark.slow
@pytest.mark.parametrize("caches", ["device", "cpu"])
def test_tiled_decode(device, caches):
    """In main memory, every tile's cache goes there and back once a call."""
    phase = tiled_decode_costs(Tiling(caches=caches), frames=1)
    assert not phase.waits
    costs = phase.costs
    check_budget(costs.launches, costs.bytes, (5417, 218.4))
    if caches == "device":
        assert costs.to_host == costs.to_device == 0
    else:
        assert 0 < costs.to_device <= costs.to_host < 4.5e9


def test_decoder_caches_stay_where_they_fit(device, monkeypatch):
    from salt.models import streaming_vae

    vae = torch.nn.Module.to(AutoencoderKLWan(base_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1), device)
    homes = []
    for free in (10**12, 0):
        monkeypatch.setattr(streaming_vae, "free_bytes", lambda device, free=free: free)
        decoder = streaming_vae.WanStreamDecoder(vae, Tiling(64, 16))
        decoder.decode(torch.zeros(1, 16, 1, 16, 16, device=device))
        homes.append({e.device.type for t in decoder._tiles for e in t.cache if isinstance(e, torch.Tensor)})
    assert homes == [{"cuda"}, {"cpu"}]
