"""Salt Sampler and Salt Rollout with what core's nodes hand them: start pictures, latents, files, preview settings."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import torch

from .session import FOLDER, PACK, error, run_case
from .tiny_model import (
    LOADING,
    NODES,
    PROMPT,
    STUDENT_SPEC,
    TINY,
    extend,
    output_of,
    outputs_of,
    part,
    refusal,
    rollout,
    text,
    tiny,
)

SIGMAS = PACK.schedule.Schedule.of(2).sigmas


def picture():
    image = torch.zeros(1, 64, 64, 3)
    image[:, 20:40, 20:40, 0] = 1
    return image


def with_picture(model, image, width=64, height=64):
    """The MODEL and the LATENT of core's ARVideoI2V."""
    from comfy_extras.nodes_ar_video import ARVideoI2V

    vae = part("nodes.adapter.tiny_model").load_vae()
    return ARVideoI2V.execute(model, vae, image, width, height, 33, 1).args


@torch.inference_mode()
def sampled(model, latent=None, sigmas=None, policy=None):
    """Latents of Salt Sampler in core's custom sampling."""
    from comfy_extras.nodes_custom_sampler import BasicGuider, RandomNoise, SamplerCustomAdvanced

    return output_of(
        SamplerCustomAdvanced,
        noise=output_of(RandomNoise, noise_seed=3),
        guider=output_of(BasicGuider, model=model, conditioning=text(PROMPT)),
        sampler=NODES.SaltSampler.execute(frames_per_block=0, stepping="sde", policy=policy).args[0],
        sigmas=torch.tensor([*SIGMAS, 0.0]) if sigmas is None else sigmas,
        latent_image={"samples": torch.zeros(1, 16, 9, 8, 8)} if latent is None else latent,
    )["samples"]


@torch.no_grad()
def by_engine(initial, frames, start=None, sigmas=SIGMAS, stepping="sde", first_frame=None):
    """The clip by the engine's own transformer, from this initial noise."""
    student = PACK.checkpoints.load_student(TINY, dtype=torch.float32)
    source = part("nodes.adapter.custom_sampling").GraphNoise(initial, PACK.noise.SeededNoise(3, 1, 16, 8, 8))
    schedule = PACK.schedule.Schedule(tuple(1000 * s for s in sigmas), shift=1.0)
    memory = student.new_memory(PACK.memory.MemoryPolicy(), 1, 8, 8)
    blocks = PACK.rollout.rollout(
        PACK.causal_model.CausalModel(student), PACK.conditioning.Conditioning(text(PROMPT)[0][0]), memory, source,
        frames, PACK.rollout.RolloutSettings(schedule, stepping), initial_latents=start, first_frame=first_frame,
    )  # fmt: skip
    return torch.cat([*([] if start is None else [start]), *(b.latents for b in blocks)], dim=2)


@torch.inference_mode()
def starts():
    """Core's ARVideoI2V before Salt Sampler, Salt Rollout, Salt Extend Video, Salt Semigroup Defect; None without."""
    if find_spec("comfy_extras.nodes_ar_video") is None:
        return None
    from comfy_extras.nodes_custom_sampler import RandomNoise

    vae = part("nodes.adapter.tiny_model").load_vae()
    plain, image = tiny(), picture()
    model, latent = with_picture(plain, image)
    base = plain.model
    begun = base.process_latent_in(vae.encode(image))
    noise = output_of(RandomNoise, noise_seed=3).generate_noise({"samples": latent["samples"]})
    clip = base.process_latent_in(sampled(model, latent))
    spec = replace(STUDENT_SPEC.known_spec(model), gives_first_frame=True)
    given = base.process_latent_in(sampled(STUDENT_SPEC.with_spec(model, spec), latent))
    rolled, memory, _ = rollout(model)
    with_image = rollout(plain, start_image=image, vae=vae)[0]["samples"]
    wide = with_picture(plain, image, width=96)[0]
    extended = extend(model, memory, rolled, seconds=0.7)
    defect = part("nodes.nodes_diagnostics").SaltSemigroupDefect
    measure = dict(positive=text(PROMPT), triples="1000, 875, 750", seconds=1.0, width=64, height=64, seed=0)
    return {
        "frames": clip.shape[2],
        "begins": error(clip[:, :, :1], begun),
        "error": error(clip, by_engine(noise, 9, begun)[:, :, :9]),
        "given": error(given, by_engine(noise, 9, first_frame=begun)),
        "moves": error(clip[:, :, 1:], base.process_latent_in(sampled(plain, latent))[:, :, 1:]),
        "batch": list(rollout(model, batch_size=2)[0]["samples"].shape),
        "rollout": error(rolled["samples"], with_image),
        "extended": [extended[0]["samples"].shape[2] - rolled["samples"].shape[2], extended[2]],
        "sampler, another size": refusal(sampled, wide, latent),
        "rollout, another size": refusal(rollout, wide),
        "two starts": refusal(rollout, model, start_image=image, vae=vae),
        "latents too": refusal(rollout, model, latents=rolled),
        "defect": refusal(defect.execute, model, frames_per_block=0, **measure),
        "no room": refusal(sampled, model, {"samples": torch.zeros(1, 16, 1, 8, 8)}),
    }


@torch.inference_mode()
def latents():
    """A LATENT that is not empty, at full and at partial noise; sizes and lengths that do not fit."""
    from comfy_extras.nodes_custom_sampler import RandomNoise, SplitSigmasDenoise

    model = tiny()
    first = sampled(model)
    full = torch.tensor([*PACK.schedule.Schedule.of(4).sigmas, 0.0])
    part_of = outputs_of(SplitSigmasDenoise, sigmas=full, denoise=0.5)[1]
    noise = output_of(RandomNoise, noise_seed=3).generate_noise({"samples": first})
    again = model.model.process_latent_in(sampled(model, {"samples": first}, part_of))
    inside = model.model.process_latent_in(first)
    mixed = PACK.schedule.add_noise(inside, noise, part_of[0].item())
    return {
        "full noise": refusal(sampled, model, {"samples": 3 * first}),
        "partial noise": error(again, by_engine(mixed, 9, sigmas=part_of[:-1].tolist())),
        "changes": error(again, inside),
        "empty, partial noise": refusal(sampled, model, sigmas=part_of),
        "rising": refusal(sampled, model, sigmas=torch.tensor([1.0, 0.5, 0.75, 0.0])),
        "narrow": refusal(sampled, model, {"samples": torch.zeros(1, 16, 9, 8, 3)}),
        "length": refusal(sampled, model, {"samples": torch.zeros(1, 16, 10, 8, 8)}),
        "width 100": refusal(rollout, model, width=100),
        "width 24": refusal(rollout, model, width=24),
        "height 8": refusal(rollout, model, height=8),
        "narrow start": refusal(rollout, model, latents={"samples": torch.zeros(1, 16, 1, 8, 3)}),
        "policy": refusal(part("nodes.adapter.memory_policy").predicted_bytes, model, None, 64, 100, 1.0),
    }


@torch.inference_mode()
def rules():
    """Students with steps of their own: what SIGMAS cannot hold is refused, and their way between levels is taken."""
    from comfy_extras.nodes_custom_sampler import RandomNoise

    families, longlive2 = part("salt.checkpoints.families"), part("salt.checkpoints.longlive2")
    specs = {"longlive2": longlive2.LONGLIVE2, "krea": families.KREA, "sdv2": families.STREAMDIFFUSION2}
    defect = part("nodes.nodes_diagnostics").SaltSemigroupDefect
    measure = dict(positive=text(PROMPT), triples="1000, 875, 750", seconds=1.0, width=64, height=64, seed=0)
    found = {}
    for name, spec in specs.items():
        model = STUDENT_SPEC.with_spec(tiny(), spec)
        found[name] = [
            refusal(sampled, model),
            refusal(NODES.SaltSigmas.execute, nfe="student's", steps="", shift=0.0, model=model),
            refusal(defect.execute, model, frames_per_block=0, **measure),
        ]
    noise = output_of(RandomNoise, noise_seed=3).generate_noise({"samples": torch.zeros(1, 16, 9, 8, 8)})
    for stepping in ("unipc", "ode"):
        model = STUDENT_SPEC.with_spec(tiny(), part("salt.spec").StudentSpec(stepping=stepping))
        clip = model.model.process_latent_in(sampled(model))
        found[stepping] = error(clip, by_engine(noise, 9, stepping=stepping))
    return found


@torch.inference_mode()
def files():
    """Core's UNETLoader on files that `salt convert` writes, with a student's settings and without.

    None where core keeps no word of the file that a MODEL comes from.
    """
    import folder_paths

    import nodes

    folder = FOLDER / "models"
    folder.mkdir()
    student = PACK.checkpoints.load_student(TINY, dtype=torch.float32)
    policy = PACK.memory.MemoryPolicy.parse("sink:3,window:6")
    spec = part("salt.spec").StudentSpec(steps=(1000.0, 500.0), shift=3.0, policy=policy)
    PACK.checkpoints.save_student(student, folder / "tiny.safetensors", spec=spec)
    PACK.checkpoints.save_student(student, folder / "silent.safetensors")
    PACK.checkpoints.save_student(student, folder / "longlive_base.safetensors")
    bidirectional = part("salt.spec").StudentSpec(frames_per_block=0, steps=(1000.0,))
    PACK.checkpoints.save_student(student, folder / "whole.safetensors", spec=bidirectional)
    folder_paths.add_model_folder_path("diffusion_models", str(folder))

    def load(name):
        return output_of(SimpleNamespace(execute=nodes.UNETLoader().load_unet), unet_name=name, weight_dtype="default")

    core, silent = load("tiny.safetensors"), load("silent.safetensors")
    if getattr(core, "cached_patcher_init", None) is None:
        return None
    (folder / "tiny.safetensors").rename(folder / "moved.safetensors")
    asked = dict(nfe="student's", shift=0.0)
    ours = rollout(LOADING.load_model(folder / "moved.safetensors"), **asked)
    late = rollout(core.clone(), **asked)  # its file is gone
    (folder / "moved.safetensors").rename(folder / "tiny.safetensors")
    known = load("tiny.safetensors")
    core_latents, memory, report = rollout(known, **asked)
    patched = known.clone()
    patched.add_patches({"diffusion_model.head.head.weight": (torch.ones(16 * 4, 256),)}, 0.0)
    return {
        "error": error(core_latents["samples"], ours[0]["samples"]),
        "policy": str(memory.memory.policy),
        "sigmas": NODES.SaltSigmas.execute(nfe="student's", steps="", shift=0.0, model=known).args[0].tolist(),
        "report": report,
        "moved": late[2],
        "silent": rollout(silent)[2],
        "released": str(STUDENT_SPEC.spec_of(load("longlive_base.safetensors")).policy),
        "clone": STUDENT_SPEC.spec_of(patched) == spec,
        "bidirectional": refusal(rollout, load("whole.safetensors")),
    }


@torch.inference_mode()
def settings():
    """What previews decode by, for every setting of the server and of a prompt, with a VAE and without.

    None where core has no setting of a prompt.
    """
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    if not hasattr(latent_preview, "set_preview_method"):
        return None
    previews = part("nodes.adapter.previews")
    model, vae, given = tiny(), part("nodes.adapter.tiny_model").load_vae(), sys.argv

    def decoders(command_line, prompt):
        """As a server with this command line decodes a prompt with this setting, as page and core say."""
        sys.argv = [*given, *command_line]
        method = LatentPreviewMethod(command_line[-1].rpartition("=")[2]) if command_line else None
        latent_preview.default_preview_method = method or LatentPreviewMethod.NoPreviews
        latent_preview.set_preview_method(prompt)
        item = (0, "id", {}, {} if prompt is None else {"preview_method": prompt}, [])
        queue = SimpleNamespace(currently_running={0: item})
        sys.modules["server"] = SimpleNamespace(
            PromptServer=SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue))
        )
        return [type(previews.preview_decoder(model, 16, v, 3)).__name__ for v in (None, vae)]

    found = {
        f"{' '.join(line)}, {prompt}": decoders(line, prompt)
        for line in ([], ["--preview-method", "none"], ["--preview-method=latent2rgb"], ["--preview-method", "auto"])
        for prompt in (None, "default", "none", "latent2rgb", "taesd")
    }
    args.preview_method = LatentPreviewMethod.NoPreviews
    sys.argv = [*given, "--preview-method", "none"]
    from .nodes import seen_of

    seen, pictures, _ = seen_of(model, vae=vae)
    return {"decoders": found, "pictures": len(pictures), "bar": seen[-1][0] == seen[-1][1]}


@torch.inference_mode()
def devices():
    """Where finished blocks lie, where ComfyUI keeps results elsewhere than the MODEL computes."""
    import comfy.model_management as management

    runner, outputs, model = part("nodes.adapter.rollout_runner"), part("nodes.adapter.block_outputs"), tiny()
    _, memory, _ = rollout(model)
    kept, shapes = [], []
    finish, sample = torch.cat, runner.sample

    def cat(parts, dim):
        kept.append([str(p.device) for p in parts])
        return finish([p if p.device.type == "cpu" else torch.zeros(p.shape) for p in parts], dim=dim)

    def watched(model, conds, noise, *rest, **options):
        shapes.append(noise.shape[2])
        return sample(model, conds, noise, *rest, **options)

    outputs.torch = SimpleNamespace(cat=cat)
    runner.sample = watched
    here = management.intermediate_device
    management.intermediate_device = lambda: torch.device("meta")
    rollout(model, seconds=5.0)
    management.intermediate_device = here
    outputs.torch, runner.sample = torch, sample
    return {"kept": kept, "noise": shapes}


if __name__ == "__main__":
    run_case(starts, latents, rules, files, settings, devices)
