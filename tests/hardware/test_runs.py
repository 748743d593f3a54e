"""Whole runs of the pipeline at true size: where the host waits, and the peak of every phase.

Peaks are of live tensors; the CUDA context, kernels' workspaces and fragmentation come on top.
"""

import pytest
import torch
from diffusers import AutoencoderKLWan

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
    "low memory, prompt encoded": 5.3,
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
    assert found.peaks["denoise"] / 1e9 == pytest.approx(6.67, rel=0.02)


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
@pytest.mark.parametrize("caches", ["device", "cpu"])
def test_tiled_decode_does_not_wait(device, caches):
    """In main memory, every tile's cache goes there and back once a call."""
    phase = tiled_decode_costs(Tiling(caches=caches), frames=1)
    assert not phase.waits
    costs = phase.costs
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
