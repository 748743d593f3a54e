"""Krea realtime in ComfyUI: recorded rollouts through a stock MODEL, and the nodes with a memory that is rebuilt."""

from __future__ import annotations

import json
import runpy

import torch
from safetensors.torch import load_file

from . import startup
from .session import PACK, error, golden_model, run_case, through_comfyui
from .tiny_model import IO_TYPES, extend, part, pipeline, refusal, rollout, tiny

FOLDER = startup.GOLDEN.parent / "golden2"
RecordedNoise = runpy.run_path(str(startup.ROOT / "tests/helpers/recorded_noise.py"))["RecordedNoise"]
load_vae = part("nodes.adapter.tiny_model").load_vae


def goldens():
    """Relative error of every recorded rollout."""
    rows = [r for r in json.loads((FOLDER / "rollouts2.json").read_text()) if r["case"].startswith("krea_")]
    model = golden_model(dtype=torch.float32)
    return {row["case"]: _golden(model, row) for row in rows}


def _golden(model, row):
    data, schedule = load_file(FOLDER / f"rollout_{row['case']}.safetensors"), PACK.schedule
    steps = schedule.step_list(row["steps"], "krea", row["strength"])
    settings = PACK.rollout.RolloutSettings(schedule.Schedule(steps, row["shift"], "krea"))
    noise, given = data["noise"].transpose(1, 2), row["init_frames"]
    if "source_latents" in data:
        source, drawn = (data[name].transpose(1, 2) for name in ("source_latents", "source_noise"))
        noise = schedule.add_noise(source, drawn, settings.schedule.calls[0].timestep / 1000)
    count, made = row["kv_cache_num_frames"], []

    def reencode(latents):
        made.append(latents)
        used = min(len(made) - 1 + count // 3, row["blocks"] - 1)
        return data["reencoded_first"][:, used][:, :, None]

    latents, _ = through_comfyui(
        model,
        data["context"][:, 0],
        RecordedNoise(noise, data["renoise"].transpose(2, 3), given),
        (*noise.shape[:2], given + 3 * row["blocks"], *noise.shape[3:]),
        settings,
        PACK.memory.MemoryPolicy.parse(f"rebuild:{count}" + ",keep" * row["keep_first_frame"]),
        initial=data["initial_latent"].transpose(1, 2) if given else None,
        reencode=reencode,
        later={given + 3 * block: data["context"][:, block] for block in range(1, row["blocks"])},
    )
    return error(latents[:, :, given:], data["latents"].transpose(1, 2)[:, :, -3 * row["blocks"] :])


def nodes():
    """Salt Rollout and Salt Extend Video beside the pipeline and a clip in one go; what they need is said."""
    model, vae, found = tiny(), load_vae(), {}
    inside = lambda latent: model.model.process_latent_in(latent["samples"])  # noqa: E731
    for name in ("rebuild:3", "rebuild:6,keep"):
        policy = PACK.memory.MemoryPolicy.parse(name)
        latents, memory, _ = rollout(model, policy=policy, vae=vae)
        found[name] = error(inside(latents), pipeline(memory_policy=name))
        rewound = IO_TYPES.ClipMemory(memory.memory.fork())
        rewound.memory.trim(6)
        again = extend(model, rewound, latents, seconds=0.7, vae=vae)[0]["samples"]
        found[f"{name} rewound"] = error(again, latents["samples"][:, :, : again.shape[2]])
    still = rollout(model, policy=policy, vae=vae, start_image=torch.rand(1, 64, 64, 3), seconds=3.0)[1]
    return found | {
        "still": still.memory.clean.given,
        "no vae": refusal(rollout, model, policy=PACK.memory.MemoryPolicy.parse("rebuild:3")),
        "no clip": refusal(rollout, model, memory=rewound),
        "blocks": refusal(rollout, model, policy=PACK.memory.MemoryPolicy.parse("rebuild:4,keep")),
    }


if __name__ == "__main__":
    run_case(goldens, nodes)
