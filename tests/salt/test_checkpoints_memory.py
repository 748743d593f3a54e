"""Peak memory of loading, converting and saving is near one copy of the model, measured in a separate process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.modeling_utils import no_init_weights

from salt.checkpoints import save_wan
from salt.models.transformer_salt import SaltTransformer3DModel

ROOT = Path(__file__).parents[2]
CONFIG = {"num_attention_heads": 8, "attention_head_dim": 128, "ffn_dim": 4096, "num_layers": 3, "text_dim": 64}
VALUE = 1 / 64  # exact in every dtype

# VmHWM is the peak of resident memory, mapped file pages included; writing 5 to clear_refs resets it.
MEASURE = """
import gc, json, sys, torch
from pathlib import Path
from salt.checkpoints import load_student, save_wan

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

# A first load, for what it allocates permanently.
model, folder = load_student(sys.argv[1], dtype=torch.bfloat16), sys.argv[2]
for name, dtype in (("large.safetensors", None), ("large.safetensors", torch.bfloat16), ("large.pt", torch.bfloat16)):
    del model
    gc.collect()
    start = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model = load_student(f"{folder}/{name}", dtype=dtype)
    right = all(bool((parameter == 1 / 64).all()) for parameter in model.parameters())
    loaded = resident("VmHWM") - start
    save_wan(model, f"{folder}/saved.safetensors", dtype=torch.float16)
    copy = sum(parameter.nbytes for parameter in model.parameters())
    saved = resident("VmHWM") - start
    print(json.dumps({"of": f"{name} as {dtype}", "copy": copy, "loaded": loaded, "saved": saved, "right": right}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through Linux's /proc")
def test_peak_memory_is_near_one_copy(tmp_path: Path) -> None:
    with no_init_weights():
        small = SaltTransformer3DModel(**{**CONFIG, "num_layers": 1, "ffn_dim": 64})  # type: ignore[arg-type]
        model = SaltTransformer3DModel(**CONFIG)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data.fill_(VALUE)
    save_wan(small, tmp_path / "small.safetensors")
    save_wan(model, tmp_path / "large.safetensors")
    torch.save({"generator_ema": model.state_dict(), "critic": small.state_dict()}, tmp_path / "large.pt")
    arguments = [str(tmp_path / "small.safetensors"), str(tmp_path)]
    # With a fixed threshold glibc returns freed weights to the system, so that the cases do not share memory.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == 3
    for row in rows:
        print(row["of"], {key: f"{row[key] / row['copy']:.2f} copies" for key in ("loaded", "saved")})
        assert row["right"] and row["copy"] > 120e6, row
        assert row["loaded"] > 0.9 * row["copy"], row  # the measurement includes the weights
        # While converting, the reader keeps at most 64 MiB of a file of this size mapped.
        held = 0 if "None" in row["of"] else 64 * 2**20
        assert max(row["loaded"], row["saved"]) < 1.1 * row["copy"] + held + 32e6, row
