"""Guidance functions, wrappers, samplings and marks of other nodes on a MODEL, before every node of Salt's."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import torch

from .session import PACK, error, run_case
from .tiny_model import NODES, OTHER, PROMPT, TINY, extend, output_of, part, refusal, rollout, text, tiny

SHAPE = (1, 16, 9, 8, 8)


def negative():
    return text(OTHER)


def latents(model, **changes):
    return rollout(model, seconds=1.5, **changes)[0]["samples"]


def guided(model, **changes):
    return latents(model, cfg=3.0, negative=negative(), **changes)


def patched(method: str, function, **options):
    """A MODEL with one function, set as nodes set it."""
    model = tiny()
    getattr(model, method)(function, **options)
    return model


def halved(args):
    return args["denoised"] * 0.5


def wrapper(kind: str, function):
    model = tiny()
    model.add_wrapper_with_key(kind, "theirs", function)
    return model


def neutral() -> dict[str, float]:
    """Functions that do nothing, beside no functions: the guider's path is the plain one's result."""
    import comfy.samplers

    plain, both = latents(tiny()), guided(tiny())

    def linear(args):
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    def calls(args):
        return comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    models = {
        "post_cfg": patched("set_model_sampler_post_cfg_function", lambda args: args["denoised"]),
        "pre_cfg": patched("set_model_sampler_pre_cfg_function", lambda args: args["conds_out"]),
        "cfg": patched("set_model_sampler_cfg_function", linear),
        "calc_cond_batch": patched("set_model_sampler_calc_cond_batch_function", calls),
        "predict_noise": wrapper("predict_noise", lambda executor, *a, **k: executor(*a, **k)),
        "calc_cond_batch wrapper": wrapper("calc_cond_batch", lambda executor, *a, **k: executor(*a, **k)),
        "without cfg 1 saved": patched(
            "set_model_sampler_post_cfg_function", lambda args: args["denoised"], disable_cfg1_optimization=True
        ),
    }
    found = {f"{name}, cfg 1": error(latents(model), plain) for name, model in models.items()}
    found |= {f"{name}, cfg 3": error(guided(model), both) for name, model in models.items()}
    found["negative beside cfg 1"] = error(latents(models["without cfg 1 saved"], negative=negative()), plain)
    return found


def values() -> dict[str, float]:
    """A guidance function of core's nodes beside the engine's own loop with the same arithmetic; relative errors."""
    student = PACK.checkpoints.load_student(TINY, dtype=torch.float32)
    model, words = PACK.causal_model.CausalModel(student), part("salt.models.word_embedder").WordEmbedder()
    positive, other = (PACK.conditioning.Conditioning(words.encode([w])) for w in (PROMPT, OTHER))

    def engine(guide):
        memory = student.new_memory(STUDENT.policy, 1, *SHAPE[3:])
        source = PACK.noise.SeededNoise(0, 1, 16, *SHAPE[3:])
        schedule = PACK.schedule.Schedule.of(2, STUDENT.shift)
        settings = PACK.rollout.RolloutSettings(schedule, guidance=3.0)
        with torch.no_grad():
            blocks = PACK.rollout.rollout(
                model, positive, memory, source, SHAPE[2], settings, negative=other, guide=guide
            )
            return torch.cat([b.latents for b in blocks], dim=2)

    def in_x0(combine):
        def guide(branches):
            x, sigma = branches[0].x, branches[0].timestep[0, 0] / 1000
            x0 = combine(*(x - sigma * model(inputs) for inputs in branches))
            return (x - x0) / sigma

        return guide

    def rescaled(cond, uncond):  # CFGNorm, of the post-CFG kind
        x0 = uncond + 3 * (cond - uncond)
        scale = cond.norm(dim=1, keepdim=True) / (x0.norm(dim=1, keepdim=True) + 1e-8)
        return x0 * scale.clamp(0, 1)

    from comfy_extras.nodes_cfg import CFGNorm

    base = tiny()
    inside = base.model.process_latent_in
    norm = output_of(CFGNorm, model=base, strength=1.0)
    half = patched("set_model_sampler_post_cfg_function", halved)
    return {
        "norm": error(inside(guided(norm)), engine(in_x0(rescaled))),
        "half": error(inside(guided(half)), engine(in_x0(lambda c, u: (u + 3 * (c - u)) * 0.5))),
        "norm moves": error(guided(norm), guided(base)),
    }


STUDENT = part("nodes.adapter.student_spec").spec_of(tiny())


def nodes() -> dict[str, object]:
    """The same before Salt Extend Video, Salt Semigroup Defect and Salt Sampler; CFGOverride; skipped layers."""
    from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, RandomNoise, SamplerCustomAdvanced
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    half, base = patched("set_model_sampler_post_cfg_function", halved), tiny()
    first, memory, _ = rollout(half, seconds=0.7)
    longer = extend(half, memory, first, seconds=0.7)[0]["samples"]
    defect = part("nodes.nodes_diagnostics").SaltSemigroupDefect

    @torch.inference_mode()
    def defect_of(model):
        size = dict(seconds=0.7, width=64, height=64, seed=0, frames_per_block=0)
        return defect.execute(model, text(PROMPT), "1000, 750, 500", **size).args[0]

    @torch.inference_mode()
    def sampled(model, cfg=None):
        if cfg is None:
            guider = output_of(BasicGuider, model=model, conditioning=text(PROMPT))
        else:
            guider = output_of(CFGGuider, model=model, positive=text(PROMPT), negative=negative(), cfg=cfg)
        return output_of(
            SamplerCustomAdvanced,
            noise=output_of(RandomNoise, noise_seed=3),
            guider=guider,
            sampler=NODES.SaltSampler.execute(frames_per_block=0, stepping="sde").args[0],
            sigmas=NODES.SaltSigmas.execute(nfe="2", steps="", shift=5.0).args[0],
            latent_image={"samples": torch.zeros(SHAPE)},
        )["samples"]

    layers = dict(scale=3.0, double_layers="1", single_layers="", rescaling_scale=0.0)
    skipped = output_of(SkipLayerGuidanceDiT, model=base, start_percent=0.0, end_percent=1.0, **layers)
    late = output_of(SkipLayerGuidanceDiT, model=base, start_percent=0.9999, end_percent=1.0, **layers)
    found = {
        "extended": error(longer, latents(half)),
        "defect moves": abs(defect_of(half) - defect_of(base)),
        "sampler moves": error(sampled(half), sampled(base)),
        "sampler with cfg moves": error(sampled(half, 3.0), sampled(base, 3.0)),
        "skipped layers move": error(guided(skipped), guided(base)),
        "skipped at no step": error(guided(late), guided(base)),
    }
    try:
        from comfy_extras.nodes_custom_sampler import CFGOverride
    except ImportError:  # ComfyUI before 0.27
        return found
    override = output_of(CFGOverride, model=base, cfg=3.0, start_percent=0.0, end_percent=1.0)
    return found | {
        "override": error(latents(override, negative=negative()), guided(base)),
        "override, sampler": error(sampled(override, 1.0), sampled(base, 3.0)),
        "override alone": refusal(latents, override),
    }


def samplings() -> dict[str, object]:
    """ModelSamplingSD3 beside the shift widget, and in SaltSigmas; ModelNoiseScale beside noise of that scale."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

    base, found = tiny(), {}
    shifted = output_of(ModelSamplingSD3, model=base, shift=8.0)
    same = output_of(ModelSamplingSD3, model=base, shift=3.0)
    noise = SimpleNamespace(**{k: NODES.SaltSigmas.execute(nfe="2", steps="", shift=0.0, model=m).args[0].tolist()
                               for k, m in {"shifted": shifted, "base": base}.items()})  # fmt: skip
    found |= {
        "as the widget": error(latents(shifted), latents(base, shift=8.0)),
        "moved": error(latents(shifted), latents(base)),
        "the student's own": error(latents(same), latents(base)),
        "widget first": error(latents(shifted, shift=5.0), latents(base, shift=5.0)),
        "note": rollout(shifted, seconds=0.7, shift=5.0)[2],
        "no note": rollout(shifted, seconds=0.7, shift=8.0)[2],
        "sigmas": [noise.base[1], noise.shifted[1]],
        "eps": refusal(latents, output_of(ModelSamplingDiscrete, model=base, sampling="eps", zsnr=False)),
    }
    try:
        from comfy_extras.nodes_model_advanced import ModelNoiseScale
    except ImportError:  # ComfyUI before 0.27
        return found
    louder = output_of(ModelNoiseScale, model=base, noise_scale=1.5)
    draw = PACK.noise.SeededNoise.__call__
    PACK.noise.SeededNoise.__call__ = lambda self, *a: 1.5 * draw(self, *a)
    try:
        expected = latents(base)
    finally:
        PACK.noise.SeededNoise.__call__ = draw
    return found | {"noise": error(latents(louder), expected), "noise moves": error(latents(louder), latents(base))}


def refusals() -> dict[str, str]:
    """Patches that only a test can set, and conditioning, with the node's or socket's name; none after a model call."""

    def unknown(args):
        return args

    def moved(executor, guider, sigmas, extra_args, callback, noise, *rest):
        return executor(guider, sigmas, extra_args, callback, noise + 1, *rest)

    def around(args):
        return args["model"].apply_model(args["input"], args["sigma"])

    strange = tiny()
    strange.model_options["sampler_new_function"] = unknown
    speech = tiny()
    speech.model_options["transformer_options"]["audio_embeds"] = 1
    layer = tiny()
    layer.set_model_patch_replace(unknown, "dit", "double_block", 99)
    seen = SimpleNamespace(penultimate_hidden_states=torch.zeros(1))
    unread, control = tiny(), tiny()
    unread.set_model_patch(unknown, "noise_refiner")  # as Z-Image's control nets do
    control.set_model_patch(SimpleNamespace(models=list), "double_block")  # as DiffSynth's control nets for images do
    entries = {
        "area": [[text(PROMPT)[0][0], {"area": (3, 2, 2, 0, 0, 0)}]],
        "mask": [[text(PROMPT)[0][0], {"mask": torch.ones(1, 64, 64)}]],
        "off": [[text(PROMPT)[0][0], {"start_percent": 0.0, "end_percent": 0.5}]],
        "combined": text(PROMPT) + text(OTHER),
        "image": [[text(PROMPT)[0][0], {"concat_latent_image": torch.zeros(1, 16, 6, 8, 8)}]],
        "clip vision": [[text(PROMPT)[0][0], {"clip_vision_output": seen}]],
        "width": [[torch.zeros(1, 8, 768), {}]],
        "ahead": [[text(PROMPT)[0][0], {"time_dim_concat": torch.zeros(1, 16, 1, 8, 8)}]],
    }  # fmt: skip
    found = {name: refusal(latents, tiny(), positive=positive) for name, positive in entries.items()}
    return found | {
        "unknown": refusal(latents, strange),
        "noise": refusal(latents, wrapper("sampler_sample", moved)),
        "around": refusal(latents, patched("set_model_sampler_post_cfg_function", around)),
        "speech": refusal(latents, speech),
        "layer": refusal(latents, layer),
        "unread": refusal(latents, unread),
        "control net": refusal(latents, control),
        "negative area": refusal(latents, tiny(), cfg=3.0, negative=entries["area"]),
    }


def turns() -> dict[str, float]:
    """Two prompts that take turns in the steps: the first step's alone moves the clip, and the second's does."""

    def at(prompt, start, end):
        return [[text(prompt)[0][0], {"start_percent": start, "end_percent": end}]]

    base = tiny()
    plain, other = latents(base), latents(base, positive=text(OTHER))
    both = latents(base, positive=at(PROMPT, 0.0, 0.1) + at(OTHER, 0.1001, 1.0))
    same = latents(base, positive=at(PROMPT, 0.0, 0.1) + at(PROMPT, 0.1001, 1.0))
    return {"same": error(same, plain), "from the first": error(both, plain), "from the second": error(both, other)}


def marks() -> dict[str, object]:
    """Calls of `cross_attn.k`, and warnings, before and after another node's patches came and went."""
    import comfy.model_management

    model, messages, counts = tiny(), [], []
    wan = model.model.diffusion_model
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    PACK.self_attention_patch.log.addHandler(handler)
    wan.blocks[0].cross_attn.k.register_forward_hook(lambda *_: counts.append(1))

    def counted():
        counts.clear()
        latents(model)
        return len(counts)

    before = counted()
    theirs = model.clone()
    for layer, block in enumerate(wan.blocks):
        for name in ("self_attn", "cross_attn"):
            forward = getattr(block, name).forward
            key = f"diffusion_model.blocks.{layer}.{name}.forward"
            theirs.add_object_patch(key, lambda *a, f=forward, **k: f(*a, **k))
    latents(theirs)
    patched_messages = len(messages)
    comfy.model_management.unload_all_models()
    left = "forward" in wan.blocks[0].cross_attn.__dict__
    return {"before": before, "left": left, "after": counted(), "said": [patched_messages, len(messages)]}


if __name__ == "__main__":
    run_case(neutral, values, nodes, samplings, refusals, turns, marks)
