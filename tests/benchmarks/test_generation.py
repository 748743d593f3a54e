"""What the speed table's cells run, on any device, and what they promise. How long it takes is no matter."""

import pytest
import torch

from benchmarks import generation
from benchmarks.generation import Case
from salt.models.transformer_salt import SaltTransformer3DModel

CEILING = {"flops": 1e12, "fp8_flops": 2e12, "bytes": 1e10}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(generation, "REPEATS", 1)
    monkeypatch.setattr(generation, "SHORT", 15)
    monkeypatch.setattr(generation, "LONG", 21)
    # Differences of two clips that take no time may fall either way.
    ticks = iter(range(1, 10**6))
    monkeypatch.setattr(generation, "timed", lambda call, device: (call(), 1.0 / next(ticks))[1])


def test_the_cells_of_a_clip():
    pipe, case = generation.embedded(), Case("sink:3,window:12", 2, decoder="taehv")
    assert set(generation.denoising(pipe, case, CEILING)) == {"fps", "of_matmul"}
    assert set(generation.whole_memory(pipe, Case("full", 2), CEILING)) == {"fps", "fps_average", "of_matmul"}
    found = generation.end_to_end(pipe, case)
    assert found["of_playing"] == found["fps"] / 16 and found["first_frame_s"] > 0
    assert generation.peak_gb(pipe, case) > 0 and generation.plain_per_block(pipe, case) != 0


def test_the_pipeline_of_random_weights_is_wans():
    """Of a size that a test can hold; the VAE is whole."""
    config = dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=2)
    pipe = generation.random_wan(torch.device("cpu"), config, size=(16, 16))
    assert isinstance(pipe.transformer, SaltTransformer3DModel) and pipe.dtype == torch.bfloat16
    assert pipe.prompt_encoder.encode(["a"]).shape == (1, 512, 4096)
    chunk = next(pipe.stream("a", num_frames=9, num_inference_steps=1, seed=0))
    assert chunk.frames.shape == (1, 9, 16, 16, 3)
