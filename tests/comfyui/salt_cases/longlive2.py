"""LongLive 2.0 in ComfyUI: recorded rollouts through a stock MODEL of Wan 2.2 TI2V's shape, and Salt Rollout."""

from __future__ import annotations

import json
import runpy

import torch
from safetensors.torch import load_file, save_file

from . import startup
from .session import FOLDER, PACK, error, run_case
from .tiny_model import part, refusal

RecordedNoise = runpy.run_path(str(startup.ROOT / "tests/helpers/recorded_noise.py"))["RecordedNoise"]


def model():
    """Core's loader takes the shape for WAN22_T2V; the file has LongLive 2.0's settings by its channels."""
    weights = {name: x.contiguous() for name, x in load_file(startup.GOLDEN / "tiny_ti2v.safetensors").items()}
    config = {"transformer": {"num_heads": startup.HEADS, "text_dim": startup.TEXT_DIM}}
    save_file(weights, FOLDER / "longlive2.safetensors", metadata={"config": json.dumps(config)})
    return startup.load(FOLDER / "longlive2.safetensors", dtype=torch.float32)


def goldens() -> dict[str, float]:
    """Relative error of every recorded rollout."""
    loaded = model()
    rows = json.loads((startup.GOLDEN / "rollouts_ll2.json").read_text())
    return {row["case"]: _golden(loaded, row) for row in rows}


def _golden(loaded, row) -> float:
    data = load_file(startup.GOLDEN / f"rollout_{row['case']}.safetensors")
    noise, size = data["noise"].transpose(1, 2), row["frames_per_block"]
    schedule = PACK.schedule.Schedule.of(row["sampling_steps"], row["shift"], "longlive2")
    settings = PACK.rollout.RolloutSettings(schedule, "unipc", size, guidance=row["guidance"])
    policy = PACK.memory.MemoryPolicy(
        "shots", row["window_frames"], row["sink_frames"],
        shot_offset=int(row["multi_shot_rope_offset"]), clean_shots=row["shot_clean_recache"],
    )  # fmt: skip
    first, Change = data.get("initial_latent"), PACK.conditioning.PromptChange

    def run(inputs):
        memory = PACK.comfy_model.new_memory(loaded, policy, noise.shape[0], *noise.shape[3:])
        changes = [
            Change(b * size, inputs.conds[str(b)], "shot" if b in row["shot_starts"] else "keep")
            for b in range(row["blocks"])
        ]
        blocks = PACK.rollout.rollout(
            inputs.model,
            PACK.conditioning.PromptSchedule(changes),
            memory,
            RecordedNoise(noise, noise[None]),
            noise.shape[2],
            settings,
            negative=inputs.conds.get("negative"),
            first_frame=None if first is None else first.transpose(1, 2),
        )
        latents = torch.cat([b.latents for b in blocks], dim=2)
        return PACK.sampler.SamplerOutput(latents, latents)

    conds = {str(b): [[data["context"][:, b], {}]] for b in range(row["blocks"])}
    if "negative_context" in data:
        conds["negative"] = [[data["negative_context"], {}]]
    sigmas = torch.tensor([*schedule.sigmas, 0.0])
    with torch.inference_mode():
        out = PACK.sampler.sample(loaded, conds, torch.zeros(noise.shape), sigmas, run, reserve=(1 << 20, size))
    return error(out.extra, data["latents"].transpose(1, 2))


def nodes():
    """Salt Rollout: sizes, settings and first frame are the MODEL's; a shot is in the memory."""
    model()  # the file
    loaded = part("nodes.adapter.loading").load_model(FOLDER / "longlive2.safetensors", dtype="fp32")
    Timed = part("nodes.io_types").TimedConditioning
    plan_clip = part("nodes.adapter.rollout_inputs").plan_clip
    run_rollout = part("nodes.adapter.rollout_runner").run_rollout
    draw = torch.Generator().manual_seed(1)
    texts = [[[torch.randn(1, 12, startup.TEXT_DIM, generator=draw), {}]] for _ in range(3)]
    prompts = [Timed(0.0, texts[0], "keep"), Timed(1.25, texts[1], "shot", first_block=texts[2])]
    widgets = dict(seed=2, nfe="student's", steps="", shift=0.0, stepping="sde", cfg=1.0, frames_per_block=0)
    frame = torch.randn(1, 48, 1, 4, 4, generator=draw)

    def play(**options):
        options = {"prompts": prompts, **options}
        with torch.inference_mode():
            return run_rollout(loaded, plan_clip(loaded, 2.5, (64, 64), 1, **options, **widgets))

    made, started = play(), play(latents={"samples": frame})
    return {
        "shape": list(made.latents.shape),
        "shots": [shot.start for shot in made.memory.memory.shots],
        "policy": str(made.memory.memory.policy),
        "first frame": error(started.latents[:, :, :1], frame),
        "started": list(started.latents.shape),
        "size": refusal(lambda: plan_clip(loaded, 2.5, (48, 64), 1, prompts=prompts, **widgets)),
    }


@torch.inference_mode()
def decode() -> dict[str, float]:
    """Frame by frame against core's own decode, by Wan 2.2's VAE in a small width."""
    import comfy.ldm.wan.vae2_2 as core
    import comfy.sd

    class WanVAE(core.WanVAE):
        def __init__(self, **config) -> None:
            super().__init__(**{**config, "dim": 8, "dec_dim": 8})

    WanVAE.__module__ = core.WanVAE.__module__
    torch.manual_seed(4)
    shapes = WanVAE(z_dim=48, temperal_downsample=[False, True, True]).state_dict()
    weights = {k: torch.ones(v.shape) if "gamma" in k else torch.randn(v.shape) * 0.1 for k, v in shapes.items()}
    core.WanVAE = WanVAE
    vae = comfy.sd.VAE(sd=weights)
    z = torch.randn(2, 48, 5, 3, 4)
    images = part("nodes.adapter.streaming_vae").decode_clips(vae, z)
    whole = vae.decode(z).reshape(images.shape)
    return {"error": (images - whole).abs().max().item(), "spread": whole.std().item(), "frames": images.shape[0]}


if __name__ == "__main__":
    run_case(goldens, nodes, decode)
