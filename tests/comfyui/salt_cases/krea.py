"""Krea realtime in ComfyUI: recorded rollouts through a stock MODEL, and the nodes with a memory that is rebuilt."""

from __future__ import annotations

import json
import runpy

import torch
from safetensors.torch import load_file

from . import startup
from .session import PACK, error, golden_model, run_case, through_comfyui
from .tiny_model import IO_TYPES, PROMPT, extend, part, pipeline, refusal, rollout, tiny

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


def queued():
    """What core's own validation says of graphs whose memory needs a VAE, before anything runs."""
    import asyncio

    import execution

    import nodes as core

    queued, kinds = part("nodes.adapter.queued_prompt"), {}
    for module in ("nodes_rollout", "nodes_sampling", "nodes_policy", "nodes_loaders", "nodes_memory", "nodes_tiny"):
        kinds |= {node.define_schema().node_id: node for node in part(f"nodes.{module}").NODES}
    core.NODE_CLASS_MAPPINGS.update(kinds)

    def graph(kind="rebuilt", **sockets):
        """salt-tiny, a policy and a rollout; sockets: further ones, or others."""
        policy = dict(kind=kind, window=3, sink=0, blend=0.9, precision="model", residence="device")
        policy |= dict(width=0, height=0, seconds=5.0, shot_offset=8, clean_shots=False)
        widgets = dict(seconds=1.0, width=64, height=64, batch_size=1, seed=0, nfe="2", steps="", shift=0.0)
        widgets |= dict(stepping="sde", cfg=1.0, frames_per_block=0, strength=0.5)
        return {
            "tiny": {"class_type": "SaltLoadTiny", "inputs": {}},
            "policy": {"class_type": "SaltMemoryPolicy", "inputs": policy},
            "text": {"class_type": "CLIPTextEncode", "inputs": {"text": PROMPT, "clip": ["tiny", 1]}},
            "rollout": {
                "class_type": "SaltRollout",
                "inputs": {
                    "model": ["tiny", 0],
                    "positive": ["text", 0],
                    "policy": ["policy", 0],
                    **widgets,
                    **sockets,
                },
            },
            "save": {
                "class_type": "SaltSaveMemory",
                "inputs": {"memory": ["rollout", 1], "filename_prefix": "salt_memories/a"},
            },
        }

    def said(prompt):
        queued.keep_graph({"prompt": prompt})
        valid, error, _, errors = asyncio.run(execution.validate_prompt("1", prompt, None))
        details = [e["details"] for node in errors.values() for e in node["errors"]]
        return [valid, error["message"] if error else "", *details]

    extended = graph(vae=["tiny", 2])
    inputs = {
        k: v
        for k, v in extended["rollout"]["inputs"].items()
        if k not in ("policy", "vae", "width", "height", "batch_size")
    }
    inputs |= dict(memory=["rollout", 1], latents=["rollout", 0])
    extended["longer"] = {"class_type": "SaltExtendVideo", "inputs": inputs}
    extended["save"]["inputs"]["memory"] = ["longer", 1]
    return {
        "no vae": said(graph()),
        "vae": said(graph(vae=["tiny", 2])),
        "kept": said(graph("rebuilt, first frame kept")),
        "extended": said(extended),
        "sampler": refusal(
            part("nodes.nodes_sampling").SaltSampler.execute,
            frames_per_block=0,
            stepping="sde",
            policy=PACK.memory.MemoryPolicy.parse("rebuild:3"),
        ),
    }


if __name__ == "__main__":
    run_case(goldens, nodes, queued)
