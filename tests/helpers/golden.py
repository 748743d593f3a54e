"""Reference tensors of the published implementations, loaded for the tests beside this file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.causal_model import CausalModel
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers.recorded_noise import RecordedNoise

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ROLLOUTS = {row["case"]: row for row in json.loads((GOLDEN / "rollouts.json").read_text())}


def student(dtype: torch.dtype = torch.float32):
    return load_student(GOLDEN / "tiny_a.safetensors", dtype=dtype).eval()


def tensors(case: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"rollout_{case}.safetensors")


def metadata(name: str) -> dict:
    with safe_open(GOLDEN / name, framework="pt") as file:
        return json.loads(file.metadata()["meta"])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def policy_of(row: dict) -> MemoryPolicy:
    window, sink = row["window_frames"], row["sink_frames"]
    if window < 0:
        return MemoryPolicy()
    if row["source"] == "infinity-rope":
        return MemoryPolicy("relative", window, sink)
    return MemoryPolicy("sink", window, sink) if sink else MemoryPolicy("window", window)


def play(model, case: str, policy: MemoryPolicy | None = None, fuse: bool = False, **memory_options) -> torch.Tensor:
    """Run a golden case through the public API; latents [B, C, F, H, W], given frames included."""
    row, data = ROLLOUTS[case], tensors(case)
    noise, renoise = data["noise"].transpose(1, 2), data["renoise"].transpose(2, 3)
    initial = data["initial_latent"].transpose(1, 2) if row["init_frames"] else None
    given = row["init_frames"]
    memory = model.new_memory(policy or policy_of(row), noise.shape[0], *noise.shape[3:], **memory_options)
    settings = RolloutSettings(Schedule(tuple(row["steps"])), frames_per_block=row["frames_per_block"], fuse=fuse)
    with torch.no_grad():
        blocks = rollout(
            CausalModel(model),
            Conditioning(data["context"]),
            memory,
            RecordedNoise(noise, renoise, given),
            row["blocks"] * row["frames_per_block"],
            settings,
            initial_latents=initial,
        )
        made = [block.latents for block in blocks]
    return torch.cat(([initial] if initial is not None else []) + made, dim=2)


def expected(case: str) -> torch.Tensor:
    return tensors(case)["latents"].transpose(1, 2)
