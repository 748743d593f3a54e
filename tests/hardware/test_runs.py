"""Whole runs of the pipeline at true size: where the host waits, and the peak of every phase.

Peaks are of live tensors; the CUDA context, kernels' workspaces and fragmentation come on top.
"""

import pytest

from benchmarks.ledger.runs import RunCase, run_costs, tiled_decode_costs
from benchmarks.ledger.table import RUNS
from salt.models.streaming_vae import Tiling

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

PEAKS = {  # GB, all phases
    "exact": 10.8,
    "exact, VAE in float32": 14.8,
    "exact, TAEHV": 7.1,
    "exact, guidance": 14.4,
    "exact, UMT5 on the device": 22.2,
    "low memory, prompt encoded": 14.3,
    "14B, exact": 48.8,
    "14B, low memory, no decoding": 38.3,
}
BLOCK_ENDS = ("async_decoder.py", "finite_check.py")  # where a finished block is waited for, once


def check(found):
    within = [
        place
        for phase, places in found.waits.items()
        if phase in ("denoise", "decode")
        for place in places
        if not any(end in place for end in BLOCK_ENDS)
    ]
    assert not within, "the host waits within a block"


@pytest.mark.slow
@pytest.mark.parametrize("name", PEAKS)
def test_peak(device, name):
    found = run_costs(RUNS[name])
    check(found)
    peak = max(value for phase, value in found.peaks.items() if phase != "decode" or RUNS[name].decoder != "none")
    assert peak / 1e9 == pytest.approx(PEAKS[name], rel=0.02)


def test_run_without_decoding(device):
    found = run_costs(RunCase(decoder="none"))
    check(found)
    assert found.peaks["denoise"] / 1e9 == pytest.approx(6.9, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        RunCase(image=True, decoder="none"),
        RunCase(decoder="none", options={"prompt_schedule": ((2.5, "another", "recache"),)}),
        RunCase(decoder="none", policy="blended:3,window:12"),
        RunCase(decoder="none", options={"fuse": True}),
    ],
    ids=("start image", "prompt change with recache", "blended", "fused"),
)
def test_run_without_waits(device, case):
    check(run_costs(case))


@pytest.mark.slow
def test_whole_decode_does_not_wait(device):
    phase = tiled_decode_costs(None)
    assert not phase.waits and not phase.crossings


@pytest.mark.slow
def test_tiles_cover_the_frame(device):
    assert tiled_decode_costs(Tiling(), frames=1).costs.flops > tiled_decode_costs(None, frames=1).costs.flops
