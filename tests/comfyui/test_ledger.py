"""A stock WanModel of true width through the adapter, counted on the fake device (`benchmarks.ledger`).

ComfyUI's loading (low VRAM, dynamic VRAM) is not run; streams, pinning and kernels are stubs.
"""

from types import SimpleNamespace

import pytest

from benchmarks.ledger.cases import BLOCK, LATENT, SIZES, TEXT_TOKENS
from salt.planning.arithmetic import forward_flops

READERS = {"_scaled_dot_product_flash_attention", "index_copy_"}
# Launches and GB of a forward, with ComfyUI 0.27 and torch 2.11.
BUDGETS = {
    "sink:3,window:12 read": (1098, 45.7),
    "sink:3,window:12 fused": (1586, 104.4),
    "relative:3,window:12,int8 read": (1278, 65.9),
    "sink:3,window:12,cpu write": (1098, 45.7),
}


def test_forwards_of_a_stock_model(inside):
    found = inside("ledger", "forwards", "--cpu", "--use-pytorch-cross-attention")
    tokens, frame = LATENT[0] * LATENT[1] // 4, 2 * 2 * LATENT[0] * LATENT[1] // 4 * 1536 * 30 / 1e9
    config = SimpleNamespace(**{"attention_head_dim": 128, **SIZES["1.3B"]})
    work = sum(forward_flops(config, BLOCK * tokens, 12 * tokens, TEXT_TOKENS).values()) / 1e12
    for case, costs in found["cases"].items():
        # Core's own time embedding makes its frequencies in main memory, in every call.
        ours = [place for place in costs["waits"] if "/comfy/ldm/wan/model.py:" not in place]
        assert not ours and sum(costs["waits"].values()) <= 1, "the host waits within a call"
        assert costs["transient"] < 1.6, "more than a layer of the memory is held twice"
        blocks = 2 if case.endswith("fused") else 1
        assert blocks * work <= costs["TFLOP"] <= 1.02 * blocks * work
        in_main = ",cpu" in case
        assert costs["to device"] == pytest.approx(9 * frame if in_main else 0, abs=0.02)
        assert costs["to host"] == pytest.approx(3 * frame if in_main else 0, abs=0.02)
        if case.startswith("sink:3,window:12 "):
            assert set(costs["reads"]) <= READERS, "the memory is copied"
        if found["torch"].startswith("2.11.") and found["comfyui"].startswith("0.27."):
            launches, moved = BUDGETS[case]
            assert costs["launches"] == pytest.approx(launches, rel=0.02)
            assert costs["GB"] == pytest.approx(moved, rel=0.02)
