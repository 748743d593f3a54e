"""The measurements of the speed table run on a CPU and return the documented figures; times are not checked."""

import pytest
import torch

from benchmarks import generation
from benchmarks.generation import Case
from salt.models.transformer_salt import SaltTransformer3DModel

CEILING = {"flops": 1e12, "fp8_flops": 2e12, "bytes": 1e10}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(generation, "REPEATS", 1)
    monkeypatch.setattr(generation, "SHORT_CLIP", 15)
    monkeypatch.setattr(generation, "LONG_CLIP", 21)
    # Decreasing times, since the difference of two real ones may be negative.
    ticks = iter(range(1, 10**6))
    monkeypatch.setattr(generation, "timed", lambda call, device: (call(), 1.0 / next(ticks))[1])


def test_measurements_of_a_clip():
    pipe, case = generation.embedded(), Case("sink:3,window:12", 2, decoder="taehv")
    assert set(generation.denoising(pipe, case, CEILING)) == {"fps", "of_matmul"}
    assert set(generation.full_memory(pipe, Case("full", 2), CEILING)) == {"fps", "fps_average", "of_matmul"}
    figures = generation.end_to_end(pipe, case)
    assert figures["of_playing"] == figures["fps"] / 16 and figures["first_frame_s"] > 0
    assert generation.peak_gb(pipe, case) > 0 and generation.plain_per_block(pipe, case) != 0


def test_the_random_pipeline_has_wans_architecture():
    """With a small transformer and the full VAE."""
    config = dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=2)
    pipe = generation.random_wan(torch.device("cpu"), config, size=(16, 16))
    assert isinstance(pipe.transformer, SaltTransformer3DModel) and pipe.dtype == torch.bfloat16
    assert pipe.prompt_encoder.encode(["a"]).shape == (1, 512, 4096)
    chunk = next(pipe.stream("a", num_frames=9, num_inference_steps=1, seed=0))
    assert chunk.frames.shape == (1, 9, 16, 16, 3)
