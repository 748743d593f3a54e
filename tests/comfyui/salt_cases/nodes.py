"""The sampling nodes on salt-tiny, beside the engine's own pipeline."""

from __future__ import annotations

import io as streams
from types import SimpleNamespace

import torch

from .session import FOLDER, PACK, error, run_case, through_engine
from .tiny_model import (
    IO_TYPES,
    LOADING,
    NODES,
    OTHER,
    PROMPT,
    STUDENT_SPEC,
    TINY,
    extend,
    output_of,
    part,
    pipeline,
    refusal,
    rollout,
    text,
    tiny,
)


def parity():
    """Salt Rollout beside SaltPipeline: relative error of the latents, in the model's space."""
    model, inside = tiny(), lambda latent: model.model.process_latent_in(latent["samples"])
    policy = PACK.memory.MemoryPolicy.parse("sink:3,window:6")
    timeline = f"0: {PROMPT}\n1 recache: {OTHER}"
    words = part("salt.models.word_embedder").WordEmbedder()
    clip = SimpleNamespace(tokenize=lambda t: t, encode_from_tokens_scheduled=lambda t: [[words.encode([t]), {}]])
    prompts = NODES.SaltPromptSchedule.execute(clip, timeline).args[0]
    changed = [(1.0, OTHER, "recache")]
    negative = [[torch.zeros_like(text(PROMPT)[0][0]), {}]]
    cases = {
        "8 steps": (dict(nfe="8"), dict(num_inference_steps=8)),
        "first block": (dict(nfe="4, then 1"), dict(num_inference_steps=1, num_first_steps=4)),
        "custom": (dict(nfe="custom", steps="1000, 600, 200"), dict(num_inference_steps=None, steps=[1000, 600, 200])),
        "window": (dict(policy=policy), dict(memory_policy=policy)),
        "ode": (dict(stepping="ode"), dict(stepping="ode")),
        "prompts": (dict(positive=None, prompts=prompts), dict(prompt_schedule=changed)),
        "guidance": (dict(cfg=3.0, negative=negative), dict(guidance_scale=3.0)),
        "two": (dict(batch_size=2), dict(prompt=[PROMPT, PROMPT])),
    }
    return {name: error(inside(rollout(model, **a)[0]), pipeline(**b)) for name, (a, b) in cases.items()}


def extension():
    """Two seconds and two more, beside four in one go; and rewound half a second first. Relative errors."""
    model, found = tiny(), {}
    for name in ("full", "sink:3,window:6", "relative:3,window:6,int8"):
        policy = PACK.memory.MemoryPolicy.parse(name)
        latents, memory, _ = rollout(model, policy=policy)
        before = [t.clone() for layer in memory.memory.store.buffers for t in layer]
        longer, after, report = extend(model, memory, latents)
        whole = rollout(model, policy=policy, seconds=(4 * longer["samples"].shape[2] - 3) / 16)[0]["samples"]
        unchanged = [t for layer in memory.memory.store.buffers for t in layer]
        found[name] = {
            "error": error(longer["samples"], whole),
            "frames": [latents["samples"].shape[2], longer["samples"].shape[2], after.memory.next_frame],
            "memory untouched": all(torch.equal(a, b) for a, b in zip(before, unchanged, strict=True)),
            "report": report,
        }
    latents, memory, _ = rollout(model)
    rewound = IO_TYPES.ClipMemory(memory.memory.fork())
    rewound.memory.trim(6)
    again = extend(model, rewound, latents, seconds=0.7)[0]["samples"]
    found["rewound"] = error(again, latents["samples"][:, :, : again.shape[2]])
    return found


def refusals():
    model, other = tiny(), tiny()
    latents, memory, _ = rollout(model)
    other.add_patches({"diffusion_model.head.head.weight": (torch.ones(1),)}, 0.5)
    bidirectional = STUDENT_SPEC.with_spec(model, part("salt.spec").StudentSpec(frames_per_block=0))
    plain = model.clone()
    plain.model_options.pop("salt_student")
    plain.model.diffusion_model.__class__ = type("WanModel", (type(plain.model.diffusion_model),), {})
    found = {
        "plain": refusal(rollout, plain),
        "plain by the user's word": refusal(rollout, plain, frames_per_block=3),
    }
    plain.model.diffusion_model.__class__ = type(plain.model.diffusion_model).__mro__[1]
    masked = {**latents, "noise_mask": torch.ones(1)}
    policy = PACK.memory.MemoryPolicy.parse("window:6")
    late = [
        IO_TYPES.TimedConditioning(0.0, text(PROMPT), "keep"),
        IO_TYPES.TimedConditioning(9.0, text(OTHER), "recache"),
    ]
    again = [
        IO_TYPES.TimedConditioning(0.0, text(PROMPT), "keep"),
        IO_TYPES.TimedConditioning(2.25, text(OTHER), "recache"),
    ]
    return found | {
        "recache alone": refusal(rollout, model, positive=None, prompts=again, memory=memory),
        "recache after the end": refusal(rollout, model, positive=None, prompts=late, memory=memory, seconds=0.7),
        "bidirectional": refusal(rollout, bidirectional),
        "no prompt": refusal(rollout, model, positive=None),
        "cfg": refusal(rollout, model, cfg=2.0),
        "mask": refusal(rollout, model, latents=masked),
        "image latent": refusal(rollout, model, latents={"samples": torch.zeros(1, 4, 8, 8)}),
        "no vae": refusal(rollout, model, start_image=torch.zeros(1, 64, 64, 3)),
        "sigmas": refusal(NODES.SaltSigmas.execute, "4, then 2", "", 0.0),
        "steps": refusal(rollout, model, nfe="custom", steps="500, 700"),
        "size": refusal(rollout, model, width=72),
        "other model": refusal(rollout, other, memory=memory),
        "other model's patches": refusal(rollout, other, memory=memory),
        "policy beside a memory": refusal(rollout, model, memory=memory, policy=policy),
        "other size": refusal(extend, model, memory, {"samples": torch.zeros(1, 16, 9, 8, 12)}),
        "other batch": refusal(rollout, model, memory=memory, latents={"samples": torch.zeros(2, 16, 9, 8, 8)}),
        "short clip": refusal(extend, model, memory, {"samples": latents["samples"][:, :, :3]}),
        "window": refusal(rollout, model, policy=PACK.memory.MemoryPolicy.parse("window:2")),
    }


def cancelled():
    """Cancelled in mid-run: core's own exception, within one model call; model and memory as usable as before."""
    import comfy.model_management as management

    model = tiny()
    latents, memory, _ = rollout(model)
    first = extend(model, memory, latents)[0]["samples"]
    calls = []

    def counted(apply_model, call):
        calls.append(1)
        if len(calls) == 5:
            management.interrupt_current_processing()
        return apply_model(call["input"], call["timestep"], **call["c"])

    stopped = model.clone()
    stopped.set_model_unet_function_wrapper(counted)
    message = refusal(extend, stopped, memory, latents)
    management.interrupt_current_processing(False)
    again = extend(model, memory, latents)[0]["samples"]
    return {"message": message, "calls": len(calls), "equal": torch.equal(first, again)}


def custom_sampling():
    """Salt Sampler in core's SamplerCustomAdvanced; a bidirectional student with core's own samplers."""
    from comfy_extras.nodes_custom_sampler import (
        BasicGuider,
        CFGGuider,
        DualCFGGuider,
        KSamplerSelect,
        RandomNoise,
        SamplerCustomAdvanced,
    )

    model = tiny()
    latent = {"samples": torch.zeros(1, 16, 9, 8, 8)}
    sigmas = NODES.SaltSigmas.execute(nfe="2", steps="", shift=5.0).args[0]
    sampler = NODES.SaltSampler.execute(frames_per_block=0, stepping="sde").args[0]
    noise = output_of(RandomNoise, noise_seed=3)

    @torch.inference_mode()
    def sampled(guider, sampler=sampler, latent=latent, sigmas=sigmas):
        out = output_of(
            SamplerCustomAdvanced, noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
        )
        return model.model.process_latent_in(out["samples"])

    basic = output_of(BasicGuider, model=model, conditioning=text(PROMPT))
    zero = [[torch.zeros_like(text(PROMPT)[0][0]), {}]]
    guided = output_of(CFGGuider, model=model, positive=text(PROMPT), negative=zero, cfg=3.0)
    twice = dict(
        model=model, cond1=text(PROMPT), cond2=text(OTHER), negative=zero, cfg_conds=5.0, cfg_cond2_negative=5.0
    )
    dual = output_of(DualCFGGuider, style="regular", **twice)
    initial = noise.generate_noise(latent)
    source = part("nodes.adapter.custom_sampling").GraphNoise(initial, PACK.noise.SeededNoise(3, 1, 16, 8, 8))
    student = PACK.checkpoints.load_student(TINY, dtype=torch.float32)
    words = PACK.conditioning.Conditioning(text(PROMPT)[0][0])
    engine = through_engine(student, words, source, initial.shape)
    with torch.no_grad():
        whole = part("salt.sampling").sample_bidirectional(
            part("salt.models.causal_model").BidirectionalModel(student), words, lambda start, frames, draw: initial, 9,
            PACK.rollout.RolloutSettings(PACK.schedule.Schedule.of(2), "ode"),
        )  # fmt: skip
    bidirectional = STUDENT_SPEC.with_spec(model, part("salt.spec").StudentSpec(frames_per_block=0))
    euler = output_of(KSamplerSelect, sampler_name="euler")
    by_core = sampled(output_of(BasicGuider, model=bidirectional, conditioning=text(PROMPT)), euler)
    return {
        "error": error(sampled(basic), engine),
        "guidance moves": error(sampled(guided), engine),
        "bidirectional by core's euler": error(by_core, whole),
        "mask": refusal(sampled, basic, latent={**latent, "noise_mask": torch.ones(1, 1, 9, 8, 8)}),
        "half a schedule": refusal(sampled, basic, sigmas=sigmas[:-1]),
        "two guidances": refusal(sampled, dual),
    }


def loaders():
    """One student in every form; which weights were taken; and files that are none."""
    import folder_paths

    student = PACK.checkpoints.load_student(TINY, dtype=torch.float32)
    save_wan, save_diffusers = PACK.checkpoints.save_wan, PACK.checkpoints.save_diffusers
    spec = part("salt.spec").StudentSpec(steps=(1000.0, 500.0))
    state = {f"model.{PACK.wan_keys.to_wan(k)}": v for k, v in student.state_dict().items()}
    averaged = {k: v * 1.5 for k, v in state.items()}
    torch.save({"generator": state, "generator_ema": averaged}, FOLDER / "student.pt")
    save_wan(student, FOLDER / "student.safetensors", spec=spec)
    save_wan(student, FOLDER / "plain.safetensors", causal_ar=False)
    save_diffusers(student, FOLDER / "folder", spec=spec)
    (FOLDER / "models" / "diffusers").mkdir(parents=True)
    save_wan(student, FOLDER / "models" / "diffusers" / "deep.safetensors")
    folder_paths.add_model_folder_path("diffusion_models", str(FOLDER / "models"))

    def summary(model):
        known, head = STUDENT_SPEC.spec_of(model), model.model.diffusion_model.head.head.weight
        scale = (head.float().norm() / student.proj_out.weight.norm()).item()
        return [known and known.schedule.nfe, round(scale, 3), str(head.dtype)]

    load = LOADING.load_model
    (FOLDER / "cut.safetensors").write_bytes((FOLDER / "student.safetensors").read_bytes()[:5000])
    torch.save({"input_blocks.0.0.weight": torch.zeros(1)}, FOLDER / "image.pt")
    return {
        "auto": summary(load(FOLDER / "student.pt")),
        "regular": summary(load(FOLDER / "student.pt", "regular")),
        "safetensors": summary(load(FOLDER / "student.safetensors")),
        "folder": summary(load(FOLDER / "folder")),
        "fp8": summary(load(FOLDER / "student.safetensors", dtype="fp8_e4m3fn")),
        "plain, trained as": summary(load(FOLDER / "plain.safetensors", trained_as="frame by frame")),
        "cut": refusal(load, FOLDER / "cut.safetensors"),
        "image": refusal(load, FOLDER / "image.pt"),
        "absent": refusal(LOADING.student_path, "nothing.pt"),
        "deep": LOADING.student_path("diffusers/deep.safetensors").name,
    }


def step_lists():
    """Sigmas that the widgets ask for: of a student trained with shift 3 in two steps, and of none."""
    model = STUDENT_SPEC.with_spec(tiny(), part("salt.spec").StudentSpec(steps=(1000.0, 500.0), shift=3.0))

    def sigmas_of(nfe, shift, model=None):
        return NODES.SaltSigmas.execute(nfe=nfe, steps="1000, 250", shift=shift, model=model).args[0].tolist()

    return {
        "the student's": sigmas_of("student's", 0.0, model),
        "its shift": sigmas_of("custom", 0.0, model),
        "another shift": sigmas_of("2", 5.0, model),
        "no student": sigmas_of("student's", 0.0),
    }


def seen_of(model=None, **changes):
    """What a hook of core's progress bar sees of one rollout: values with totals, and pictures as files."""
    import comfy.utils
    from PIL import Image

    seen, pictures = [], []

    def hook(value, total, preview, node_id=None):
        seen.append((value, total))
        if preview is not None:
            file = streams.BytesIO()
            preview[1].save(file, format=preview[0], quality=95, compress_level=1)
            pictures.append(Image.open(file))

    comfy.utils.set_progress_bar_global_hook(hook)
    out = rollout(model or tiny(), **changes)
    comfy.utils.set_progress_bar_global_hook(None)
    return seen, pictures, out


def previews():
    """Previews as latent colours, by a tiny decoder in models/vae_approx, and by a VAE that is connected."""
    import folder_paths

    seen, pictures, _ = seen_of()
    blended, _, _ = seen_of(policy=PACK.memory.MemoryPolicy.parse("blended:3,window:6"))
    values = [value for value, _ in seen]
    found = {
        "frames": [picture.n_frames for picture in pictures],
        "size": list(pictures[-1].size),
        "rising": values == sorted(values) and seen[-1][0] == seen[-1][1],
        "full before the end": values.count(values[-1]) - 1,
        "blended, full before the end": [v for v, _ in blended].count(blended[-1][0]) - 1,
        "colours": len(pictures[-1].convert("RGB").getcolors(1 << 16)),
    }
    torch.manual_seed(0)  # frames that are all alike would be one in the file
    folder = FOLDER / "vae_approx"
    folder.mkdir()
    torch.save(part("salt.models.taehv").TinyDecoder().state_dict(), folder / "taew2_1.pth")
    folder_paths.add_model_folder_path("vae_approx", str(folder))
    found["taehv"] = [picture.n_frames for picture in seen_of()[1]]
    (folder / "taew2_1.pth").write_bytes(b"half a file")
    found["damaged taehv"] = [picture.n_frames for picture in seen_of()[1]]
    return found


@torch.inference_mode()
def starts():
    """A start image: the clip begins with it; previews by the VAE show it too."""
    vae = part("nodes.adapter.tiny_model").load_vae()
    image = torch.zeros(1, 64, 64, 3)
    image[:, 20:40, 20:40, 0] = 1
    seen, pictures, (latents, memory, _) = seen_of(start_image=image, vae=vae, seconds=1.5)
    begun = vae.decode(latents["samples"][:, :, :1]).reshape(64, 64, 3)
    again = rollout(tiny(), latents={"samples": latents["samples"][:, :, :1]}, seconds=1.5)[0]["samples"]
    return {
        "frames": latents["samples"].shape[2],
        "stands": memory.memory.next_frame,
        "difference": (begun - vae.decode(vae.encode(image)).reshape(64, 64, 3)).abs().mean().item(),
        "from latents": error(again, latents["samples"]),
        "pictures": [picture.n_frames for picture in pictures],
        "whole": seen[-1][0] == seen[-1][1],
    }


def reservation():
    """Latent frames that core reserves for one call: a clip of 21, in blocks of 3."""
    runner, rollouts, conditioning = part("nodes.adapter.rollout_runner"), part("salt.rollout"), PACK.conditioning

    def frames(policy, *switches, fuse=True):
        prompts = [conditioning.PromptChange(3 * i, None, switch) for i, switch in enumerate(["keep", *switches])]
        settings = rollouts.RolloutSettings(fuse=fuse)
        policy = PACK.memory.MemoryPolicy.parse(policy)
        return runner.RolloutPlan(settings, policy, prompts, 21, (8, 8), 0, 16).frames_per_call

    return {
        "fused": frames("full", "cut"),
        "plain": frames("full", fuse=False),
        "full": frames("full", "recache"),
        "window": frames("window:12", "recache"),
    }


@torch.inference_mode()
def evictions():
    """A preview by a VAE that costs the MODEL its place, LoRA and all: the blocks after it are the same."""
    import comfy.model_management as management

    def patched():
        model = tiny()
        head = model.model.diffusion_model.head.head.weight
        model.add_patches({"diffusion_model.head.head.weight": (torch.ones_like(head),)}, 0.002)
        return model

    vae = part("nodes.adapter.tiny_model").load_vae()
    plain = rollout(patched())[0]["samples"]
    _, pictures, (latents, _, _) = seen_of(patched(), vae=vae)
    near = error(latents["samples"], plain)
    take = vae.process_output
    vae.process_output = lambda pixels: (management.unload_all_models(), take(pixels))[1]
    _, greedy_pictures, (latents, _, _) = seen_of(patched(), vae=vae)
    return {
        "kept": near,
        "evicted": error(latents["samples"], plain),
        "lora": error(rollout(tiny())[0]["samples"], plain),
        "pictures": [p.n_frames for p in pictures] == [p.n_frames for p in greedy_pictures],
    }


def without_effect():
    """Reports of rollouts with inputs that change nothing, and of one with the same inputs that do; NaN."""
    negative = [[torch.zeros_like(text(PROMPT)[0][0]), {}]]
    timed = IO_TYPES.TimedConditioning
    prompts = [timed(0.0, text(PROMPT), "keep"), timed(1.0, text(OTHER), "keep"), timed(9.0, text(PROMPT), "keep")]
    broken = tiny()
    PACK.comfy_model.wan_model(broken).head.head.weight.data.fill_(float("nan"))
    model = tiny()
    latents, memory, _ = rollout(model)
    return {
        "first block": extend(model, memory, latents, nfe="4, then 2")[2],
        "cfg 1": rollout(tiny(), negative=negative)[2],
        "cfg 2": rollout(tiny(), negative=negative, cfg=2.0)[2],
        "late": rollout(tiny(), positive=None, prompts=prompts)[2],
        "nan": refusal(rollout, broken),
    }


if __name__ == "__main__":
    run_case(
        without_effect,
        parity,
        extension,
        refusals,
        cancelled,
        custom_sampling,
        loaders,
        step_lists,
        previews,
        starts,
        reservation,
        evictions,
    )
