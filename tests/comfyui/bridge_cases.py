"""Runs inside ComfyUI's own Python, started by test_bridge.py: one case of the bridge, figures out as a line of JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import host

CASE = sys.argv[1]
host.start()

import torch  # noqa: E402 - after ComfyUI has read its arguments
from safetensors.torch import load_file  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
PACK = host.pack(FOLDER)
ROWS = {row["case"]: row for row in json.loads((host.GOLDEN / "rollouts.json").read_text())}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def policy_of(row: dict):
    window, sink = row["window_frames"], row["sink_frames"]
    if window < 0:
        return PACK.memory.MemoryPolicy()
    if row["source"] == "infinity-rope":
        return PACK.memory.MemoryPolicy("relative", window, sink)
    return PACK.memory.MemoryPolicy("sink" if sink else "window", window, sink)


def through_comfyui(model, context, noise, settings, policy=None, *, initial=None, negative=None):
    """Latents of a rollout by the engine's loop inside core's sampling; noise: a source, and its initial noise."""
    source, shape_like = noise
    given = 0 if initial is None else initial.shape[2]
    kept = {}

    def work(run):
        batch, _, _, height, width = shape_like.shape
        memory = PACK.bridge.new_memory(model, policy or PACK.memory.MemoryPolicy(), batch, height, width)
        blocks = PACK.rollout.rollout(
            run.model,
            run.conds["positive"],
            memory,
            source,
            shape_like.shape[2] - given,
            settings,
            negative=run.conds.get("negative"),
            initial_latents=initial,
        )
        kept["raw"] = torch.cat(([] if initial is None else [initial]) + [b.latents for b in blocks], dim=2)
        kept["dtype"] = str(memory.dtype)
        return kept["raw"]

    conds = {"positive": [[context, {}]], **({} if negative is None else {"negative": [[negative, {}]]})}
    sigmas = torch.tensor([*settings.schedule.sigmas, 0.0])
    with torch.inference_mode():  # as core's executor runs nodes
        out = PACK.sampling.sample(model, conds, shape_like, sigmas, work, reserve=(1 << 20, settings.frames_per_block))
        assert error(model.model.process_latent_in(out), kept["raw"]) < 1e-6
    return kept["raw"], kept["dtype"]


def golden(case: str, fuse: bool, model=None) -> float:
    row, data = ROWS[case], load_file(host.GOLDEN / f"rollout_{case}.safetensors")
    noise, renoise = data["noise"].transpose(1, 2), data["renoise"].transpose(2, 3)
    given = row["init_frames"]
    initial = data["initial_latent"].transpose(1, 2) if given else None
    settings = PACK.rollout.RolloutSettings(
        PACK.schedule.Schedule(tuple(row["steps"])), frames_per_block=row["frames_per_block"], fuse=fuse
    )
    frames = given + row["blocks"] * row["frames_per_block"]
    shape_like = noise.new_zeros(noise.shape[0], noise.shape[1], frames, *noise.shape[3:])
    source = PACK.noise.RecordedNoise(noise, renoise, given)
    model = model or host.load(host.save_golden(FOLDER / "golden.safetensors"), dtype=torch.float32)
    made, _ = through_comfyui(model, data["context"], (source, shape_like), settings, policy_of(row), initial=initial)
    expected = data["latents"].transpose(1, 2)
    return error(made[:, :, made.shape[2] - expected.shape[2] :], expected)


def goldens() -> dict:
    model = host.load(host.save_golden(FOLDER / "golden.safetensors"), dtype=torch.float32)
    return {
        f"{case} {'fused' if fuse else 'plain'}": golden(case, fuse, model) for case in ROWS for fuse in (False, True)
    }


CASES = {f.__name__: f for f in (goldens,)}

if __name__ == "__main__":
    print("RESULT " + json.dumps(CASES[CASE]()))
