"""StreamDiffusionV2 in ComfyUI: recorded rollouts of a source video through a stock MODEL, memory overwritten."""

from __future__ import annotations

import json
import runpy

import torch
from safetensors.torch import load_file

from . import startup
from .session import PACK, error, golden_model, run_case, through_comfyui
from .tiny_model import part

FOLDER = startup.GOLDEN.parent / "golden2"
RecordedNoise = runpy.run_path(str(startup.ROOT / "tests/helpers/recorded_noise.py"))["RecordedNoise"]
motion = part("salt.video_in.motion")


def goldens():
    """Relative error of every recorded rollout that goes block by block."""
    rows = json.loads((FOLDER / "rollouts2.json").read_text())
    rows = [r for r in rows if r["case"].startswith("sdv2_") and r["mode"] != "stream_batch"]
    model = golden_model(dtype=torch.float32)
    return {row["case"]: _golden(model, row) for row in rows}


def _golden(model, row):
    data, schedule = load_file(FOLDER / f"rollout_{row['case']}.safetensors"), PACK.schedule
    settings = PACK.rollout.RolloutSettings(
        schedule.Schedule(tuple(row["steps"]), row["shift"], "streamdiffusion2"),
        frames_per_block=row["frames_per_chunk"],
    )
    policy = PACK.memory.MemoryPolicy(
        "overwrite", row["memory_frames"], row["sink_frames"], refresh=row["adapt_sink_threshold"],
        reset=row["position_refresh_at"],
    )  # fmt: skip
    source, drawn = (data[name].transpose(1, 2) for name in ("source_latents", "source_noise"))
    pixels = data["video_uint8"].float() / 127.5 - 1
    latents, _ = through_comfyui(
        model,
        data["context"],
        RecordedNoise(drawn, data["renoise"].transpose(2, 3)),
        tuple(source.shape),
        settings,
        policy,
        video=motion.MotionNoise(source, motion.motion_of(pixels), row["noise_scale"]),
    )
    return error(latents, data["latents"].transpose(1, 2))


if __name__ == "__main__":
    run_case(goldens)
