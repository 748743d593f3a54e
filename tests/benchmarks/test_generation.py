"""The measurements of the speed table run on a CPU and return the documented figures; times are not checked."""

from dataclasses import replace

import pytest
import torch

from benchmarks import cells, generation
from benchmarks.__main__ import as_table, main, measure
from benchmarks.generation import Case, RandomWan
from salt.acceleration.presets import PREFERENCES
from salt.models.text_encoder import UMT5TextEncoder
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.pipeline import SaltPipeline

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
    """With a small transformer, no UMT5 and the full VAE."""
    config = dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=2)
    pipe = generation.random_wan(torch.device("cpu"), RandomWan(config, umt5=None, size=(16, 16)))
    assert isinstance(pipe.transformer, SaltTransformer3DModel) and pipe.dtype == torch.bfloat16
    assert pipe.prompt_encoder.encode(["a"]).shape == (1, 512, 4096)
    chunk = next(pipe.stream("a", num_frames=9, num_inference_steps=1, seed=0))
    assert chunk.frames.shape == (1, 9, 16, 16, 3)


TINY_WAN = RandomWan(
    transformer=dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=2, text_dim=32),
    vae=dict(base_dim=8),
    umt5=dict(vocab_size=8, d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"),
    size=(16, 16),
)


def test_every_row_of_the_gpu_table_runs(monkeypatch, tmp_path):
    """With a small model on the CPU: no compiler, no float8, no training run (`test_training.py`), no ComfyUI."""

    def set_acceleration(pipe, name):
        eager = replace(PREFERENCES[name], compiled=False, fp8=False)
        monkeypatch.setitem(PREFERENCES, name, eager)
        plain(pipe, name)

    monkeypatch.setattr(generation, "SHORT_CLIP", 6)
    monkeypatch.setattr(generation, "LONG_CLIP", 9)
    plain = SaltPipeline.set_acceleration
    monkeypatch.setattr(SaltPipeline, "set_acceleration", set_acceleration)
    monkeypatch.setattr(cells.training, "measure_training", lambda *arguments, **options: {"speedup": 1.5})
    monkeypatch.setattr(cells.comfyui, "run", lambda names, device: COMFYUI)
    monkeypatch.setenv("COMFYUI_PATH", "here")
    monkeypatch.setenv("COMFYUI_PYTHON", "python")
    bench = cells.Bench(torch.device("cpu"), TINY_WAN)
    bench.measured_ceilings = CEILING
    encoded = []
    encode = UMT5TextEncoder.encode
    monkeypatch.setattr(UMT5TextEncoder, "encode", lambda *arguments: encoded.append(1) or encode(*arguments))
    results = measure(cells.GPU, bench, tmp_path / "gpu.json", again=False)
    assert {name for name, figures in results["cells"].items() if {"failed", "skipped"} & figures.keys()} == set()
    assert encoded, "prompts go through UMT5"
    table = as_table(cells.GPU, results)
    assert "not measured yet" not in table and "FlashDreams 34.9" in table
    assert "| ComfyUI core's AR sampler, full memory, 4 NFE | 24 frames/s |" in table


COMFYUI = {
    "1.3B / ours": {"per_block": 0.4},
    "1.3B / core": {"per_block": 0.5},
    "1.3B / library": {"per_block": 0.39, "over_library": 1.02},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "gpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("gpu: found no CUDA device") and len(err.splitlines()) == 1
