"""LongLive 2.0 in ComfyUI: recorded rollouts through a stock MODEL of Wan 2.2 TI2V's shape, and Salt Rollout."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

from . import startup
from .live import steered_by
from .running import output_folder
from .session import FOLDER, PACK, error, run_case
from .tiny_model import ROLLOUTS, WIDGETS, part, refusal

TIMED, SPEC = part("nodes.io_types").TimedConditioning, "nodes.adapter.student_spec"
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


def loaded_model():
    """The same by Load Salt Student's function."""
    model()  # the file
    with startup.golden_shape():
        return part("nodes.adapter.loading").load_model(FOLDER / "longlive2.safetensors", dtype="fp32")


def play(loaded, seconds=2.5, size=(64, 64), **options):
    """Salt Rollout's run."""
    widgets = dict(seed=2, nfe="student's", steps="", shift=0.0, stepping="sde", cfg=1.0, frames_per_block=0)
    given = {"positive": [[torch.zeros(1, 12, startup.TEXT_DIM), {}]], **options, **widgets}
    with torch.inference_mode():
        plan = part("nodes.adapter.rollout_inputs").plan_clip(loaded, seconds, size, 1, **given)
        return part("nodes.adapter.rollout_runner").run_rollout(loaded, plan)


def embedded(text):
    """Some CONDITIONING of its own for every text."""
    draw = torch.Generator().manual_seed(sum(text.encode()))
    return [[torch.randn(1, 12, startup.TEXT_DIM, generator=draw), {}]]


@torch.inference_mode()
def played_live(loaded, controls=(), **begins):
    """Latents and prompts of *Salt Live* with the settings of `play`."""
    output_folder()
    clip = SimpleNamespace(cond_stage_model=None, tokenize=str, encode_from_tokens_scheduled=embedded)
    widgets = dict(seed=2, nfe="student's", steps="", shift=0.0, cfg=1.0, frames_per_block=0, pace="free")
    size = dict(seconds=2.5, width=64, height=64, filename_prefix="video/live")
    with steered_by(controls):
        live = part("nodes.live.nodes_live").SaltLive.execute
        _, latents, _, prompts, _ = live(loaded, clip, small_vae(), "a circle", "", **size, **widgets, **begins).args
    return latents["samples"], prompts


def live_shot(loaded):
    """A session's shot, and the same prompts by *Salt Rollout*."""
    controls = {1: [part("salt.live.controls").Prompt.of("a square", "shot")]}
    latents, prompts = played_live(loaded, controls)
    again = play(loaded, prompts=prompts, positive=None).latents
    return [error(again, latents), [p.switch for p in prompts], prompts[1].first_block is not None]


def nodes():
    """Salt Rollout: sizes, settings and first frame are the MODEL's; a shot is in the memory."""
    loaded = loaded_model()
    draw = torch.Generator().manual_seed(1)
    texts = [[[torch.randn(1, 12, startup.TEXT_DIM, generator=draw), {}]] for _ in range(3)]
    prompts = [TIMED(0.0, texts[0], "keep"), TIMED(1.25, texts[1], "shot", first_block=texts[2])]
    frame = torch.randn(1, 48, 1, 4, 4, generator=draw)
    own, begins = {"positive": embedded("a circle")}, {"latents": {"samples": frame}}
    guided = loaded.clone()
    guided.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    plain = play(loaded, **own, **begins).latents
    made, started = (play(loaded, prompts=prompts, positive=None, **x) for x in ({}, begins))
    return {
        "live": error(played_live(loaded, **begins)[0], plain),
        "live shot": live_shot(loaded),
        "guider": error(play(guided, **own, **begins).latents, plain),
        "shape": list(made.latents.shape),
        "shots": [shot.start for shot in made.memory.memory.shots],
        "policy": str(made.memory.memory.policy),
        "first frame": error(started.latents[:, :, :1], frame),
        "started": list(started.latents.shape),
        "size": refusal(play, loaded, size=(48, 64)),
    }


def small_vae():
    """Wan 2.2's VAE in a small width."""
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
    return comfy.sd.VAE(sd=weights)


@torch.inference_mode()
def decode() -> dict[str, float]:
    """Frame by frame against core's own decode."""
    vae, z = small_vae(), torch.randn(2, 48, 5, 3, 4)
    images = part("nodes.adapter.streaming_vae").decode_clips(vae, z)
    whole = vae.decode(z).reshape(images.shape)
    return {"error": (images - whole).abs().max().item(), "spread": whole.std().item(), "frames": images.shape[0]}


@torch.inference_mode()
def encode():
    """In pieces against core's own encode of the whole clip; start pictures and a source video; another VAE."""
    part("nodes.adapter.preview_method").preview_method = lambda: "none"
    pictures, streaming = part("nodes.adapter.start_picture"), part("nodes.adapter.streaming_vae")
    vae, images = small_vae(), torch.rand(2, 29, 64, 96, 3)
    whole = torch.cat([vae.encode(clip) for clip in images])
    encoder, pixels = streaming.ComfyStreamEncoder(vae), images.movedim(-1, 1) * 2 - 1
    pieces = [
        encoder.encode(pixels[:, :, :2]),
        encoder.encode(pixels[:, :, 2:4]),
        encoder.fork().encode(pixels[:, :, 4:]),
    ]
    start = pictures.encode_start_image(vae, images[0], (96, 64), 2, 48)
    loaded = loaded_model()
    source = play(loaded, vae=vae, video=images[1], strength=0.0, seconds=0.5, size=(96, 64))
    tiny_vae = part("nodes.adapter.tiny_model").load_vae()
    return {
        "pieces": error(torch.cat(pieces, dim=2), streaming.latent_format(vae).process_in(whole)),
        "start": error(start, whole[:1].expand(2, -1, -1, -1, -1)),
        "lengths": [piece.shape[2] for piece in pieces],
        "source": error(source.latents, whole[1:]),
        "other": refusal(play, loaded, vae=tiny_vae),
        "start by another": refusal(pictures.encode_start_image, tiny_vae, images[0], (96, 64), 1, 48),
    }


def rates():
    """24 frames a second wherever a length, a file, a preview or a memory is given in seconds."""
    folder, vae, loaded = output_folder(), small_vae(), loaded_model()
    info = part("salt.io.video_frames").video_info
    as_video = part("nodes.adapter.core_versions").as_video
    decode_node, memories = part("nodes.nodes_decode").SaltDecode, part("nodes.nodes_memory")
    conditioning = [[torch.zeros(1, 12, startup.TEXT_DIM), {}]]
    widgets = dict(positive=conditioning, width=64, height=64, seconds=1.3) | WIDGETS
    latents, memory, report = ROLLOUTS.SaltRollout.execute(model=loaded, batch_size=1, vae=vae, **widgets).args
    without = {"samples": latents["samples"]}
    rate = {
        name: str(decode_node.execute(x, vae, fps).args[1].get_components().frame_rate)
        for name, x, fps in (("own", latents, 0.0), ("by channels", without, 0.0), ("set", latents, 12.0))
    }
    _, _, said = (
        part("nodes.live.nodes_rollout_to_video")
        .SaltRolloutToVideo.execute(model=loaded, vae=vae, filename_prefix="video/%width%", **widgets)
        .args
    )
    video = Path(said.partition(":")[0])
    rewound, where = memories.SaltRewindMemory.execute(memory, 1.0, "seconds").args
    saved = Path(memories.SaltSaveMemory.execute(memory, "salt_memories/%width%").args[0])
    again = memories.SaltLoadMemory.execute(f"salt_memories/{saved.name} [output]").args[0]
    images = torch.rand(6, 64, 64, 3)
    with torch.inference_mode():
        pixels = part("nodes.adapter.source_clip").source_frames(as_video(images, 12.0), 24)
        short = refusal(play, loaded, vae=vae, video=images)
    preview = part("nodes.adapter.previews").preview_decoder(loaded, 24)
    late = [TIMED(0.0, conditioning, "keep"), TIMED(9.0, conditioning, "keep")]
    plan = part("nodes.adapter.memory_plan").plan_of_model
    return {
        "rate": rate,
        "file": [info(video, 24).fps, info(video, 24).frames, video.parent.relative_to(folder).as_posix(), video.name],
        "rewound": [rewound.memory.next_frame, where],
        "saved": [saved.name, again.fps, again.pixels_per_token, memory.fps],
        "source": [pixels.count, len(list(pixels.read())), short],
        "preview": preview.fps,
        "late": play(loaded, positive=None, prompts=late).report,
        "plan": plan(loaded, None, 64, 64, 1.3, False).settings.frames(part(SPEC).spec_of(loaded)),
        "plan of 48": refusal(plan, loaded, None, 48, 64, 1.3, False),
    }


if __name__ == "__main__":
    run_case(goldens, nodes, decode, encode, rates)
