"""A stock MODEL in core's sampling: what raises an error, and what is left on the MODEL."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from . import startup
from .session import FOLDER, PACK, SIZE, error, golden_model, run_case, seeded, text, through_comfyui

SHAPE = (1, 16, 6, *SIZE)


def refused(call) -> str:
    try:
        call()
    except ValueError as fault:
        return str(fault)
    return "nothing was refused"


def untouched(model) -> bool:
    """Whether nothing of ours is left on the modules that all clones of a MODEL share."""
    base = model.model
    modules = [block.self_attn for block in base.diffusion_model.blocks]
    clean = all("forward" not in m.__dict__ and "salt_memory" not in m.__dict__ for m in modules)
    return clean and "process_timestep" not in base.__dict__ and "memory_required" not in base.__dict__


def conditioning() -> dict[str, str]:
    """Several entries at once, entries that are off, and latents that are put before the clip."""
    model = golden_model(dtype=torch.float32)
    combined = [[text(0), {}], [text(1), {}]]
    off = [[text(0), {"start_percent": 0.0, "end_percent": 0.5}]]
    ahead = [[text(0), {"time_dim_concat": torch.zeros(1, 16, 1, *SIZE)}]]
    tried = {"combined": combined, "off": off, "ahead": ahead}
    answers = {k: refused(lambda c=c: through_comfyui(model, c, seeded(), SHAPE)) for k, c in tried.items()}
    assert untouched(model)
    return answers


def skipping() -> str:
    """A node that answers some calls without running the layers (EasyCache and its like)."""
    from comfy.patcher_extension import WrappersMP

    model = golden_model(dtype=torch.float32).clone()
    calls = []

    def wrapper(executor, x, *args, **kwargs):
        calls.append(1)
        return torch.zeros_like(x) if len(calls) == 2 else executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "skipping", wrapper)
    answered = refused(lambda: through_comfyui(model, text(0), seeded(), SHAPE))
    assert untouched(model)
    return answered


def wrong_models() -> dict[str, str]:
    """A VACE model, a model of other latents, an image model; by what core makes of their files."""

    weights = load_file(startup.save_golden(FOLDER / "golden.safetensors"))
    other = {**weights, "head.head.weight": torch.zeros(128, 128), "head.head.bias": torch.zeros(128)}
    other["patch_embedding.weight"] = torch.zeros(128, 32, 1, 2, 2)
    vace = {**weights, "vace_patch_embedding.weight": torch.zeros(128, 96, 1, 2, 2)}
    vace |= {k.replace("blocks.0", "vace_blocks.0"): v.clone() for k, v in weights.items() if k.startswith("blocks.0")}
    vace |= {f"vace_blocks.0.{n}.weight": torch.zeros(128, 128) for n in ("before_proj", "after_proj")}
    vace |= {f"vace_blocks.0.{n}.bias": torch.zeros(128) for n in ("before_proj", "after_proj")}
    answers = {}
    for name, content in {"vace": vace, "channels": other}.items():
        from safetensors.torch import save_file

        save_file(content, FOLDER / f"{name}.safetensors")
        model = startup.load(FOLDER / f"{name}.safetensors", dtype=torch.float32)
        answers[name] = refused(lambda m=model: PACK.comfy_model.wan_model(m))
    image = SimpleNamespace(model=type("SDXL", (), {"diffusion_model": type("UNetModel", (), {})()})())
    answers["image"] = refused(lambda: PACK.comfy_model.wan_model(image))
    return answers


def cancelled() -> dict[str, object]:
    """Core's Cancel in mid-run: it is seen at the next model call, and the next run is as good as the first."""
    import comfy.model_management as management

    model = golden_model(dtype=torch.float32)
    before, _ = through_comfyui(model, text(0), seeded(), SHAPE)
    steps = []

    def press(step) -> None:
        steps.append(step)
        if len(steps) == 4:
            management.interrupt_current_processing(True)

    try:
        through_comfyui(model, text(0), seeded(), SHAPE, on_step=press)
        seen = False
    except management.InterruptProcessingException:
        seen = True
    clean = untouched(model)
    after, _ = through_comfyui(model, text(0), seeded(), SHAPE)
    return {"seen": seen, "calls": len(steps), "clean": clean, "equal": torch.equal(before, after)}


def overrides() -> dict[str, object]:
    """An attention override on the MODEL is used for self-attention, and its answer is what counts."""
    model = golden_model(dtype=torch.float32)
    plain, _ = through_comfyui(model, text(0), seeded(), SHAPE)
    seen = []

    def override(attention, q, k, v, *args, **kwargs):
        seen.append((q.shape[1], k.shape[1]))
        return attention(q, k, v, *args, **kwargs) * (0.5 if k.shape[1] > 12 else 1)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    latents, _ = through_comfyui(patched, text(0), seeded(), SHAPE)
    return {"longest keys": max(k for _, k in seen), "moved": error(latents, plain), "calls": len(seen)}


def replaced() -> dict[str, object]:
    """Another node's patch of self-attention: logged, set aside for the rollout, back in place after it."""
    import logging

    model, messages = golden_model(dtype=torch.float32), []
    plain, _ = through_comfyui(model, text(0), seeded(), SHAPE)
    patched = model.clone()

    def theirs(x, freqs, transformer_options=None):
        return torch.zeros_like(x)

    patched.add_object_patch("diffusion_model.blocks.1.self_attn.forward", theirs)
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    PACK.self_attention_patch.log.addHandler(handler)
    latents, _ = through_comfyui(patched, text(0), seeded(), SHAPE)
    back = model.model.diffusion_model.blocks[1].self_attn.forward is theirs
    return {
        "error": error(latents, plain),
        "messages": [m for m in messages if "1 layers is patched" in m],
        "back": back,
    }


def reserving() -> dict[str, object]:
    """What core is asked to free memory for: one call's frames and the memory, however long the clip is."""
    import comfy.model_management as management

    load, requested = management.load_models_gpu, []

    def recording(models, *args, **kwargs):
        requested.append(kwargs["memory_required"])
        return load(models, *args, **kwargs)

    management.load_models_gpu = recording
    model, noise = golden_model(dtype=torch.float32), torch.zeros(1, 16, 30, *SIZE)
    for reserve in (None, (0, 30), (0, 3), (5 << 30, 3)):
        PACK.sampler.sample(
            model,
            {"positive": [[text(0), {}]]},
            noise,
            torch.tensor([1.0, 0.0]),
            lambda inputs: PACK.sampler.SamplerOutput(inputs.noise, None),
            reserve=reserve,
        )
    whole, thirty, three, memory = requested
    return {"whole": thirty / whole, "share": three / thirty, "memory": memory - three, "clean": untouched(model)}


def fingerprints() -> dict[str, object]:
    """The same before and after loading, with and without merged weights; another for a LoRA; a memory is refused."""
    import comfy.sd

    model = golden_model(dtype=torch.float32)
    name = "diffusion_model.blocks.0.self_attn.q"
    factors = {f"{name}.lora_A.weight": torch.ones(4, 128), f"{name}.lora_B.weight": torch.ones(128, 4)}
    patched, _ = comfy.sd.load_lora_for_models(model, None, factors, 1.0, 0.0)
    weaker, _ = comfy.sd.load_lora_for_models(model, None, factors, 0.5, 0.0)
    prints = [PACK.fingerprint.fingerprint(m) for m in (model, patched, weaker)]
    PACK.fingerprint._known.clear()
    _, memory = through_comfyui(patched, text(0), seeded(), SHAPE)
    PACK.fingerprint._known.clear()
    merged = [PACK.fingerprint.fingerprint(m) for m in (model, patched, weaker)]
    with torch.inference_mode():
        PACK.memory.save_memory(memory, FOLDER / "memory.safetensors")
    again = [PACK.fingerprint.fingerprint(m) for m in (golden_model(dtype=torch.float32),)]
    return {
        "different": len(set(prints)) == 3,
        "same when merged": prints == merged,
        "same when read again": prints[0] == again[0],
        "refusal": refused(lambda: PACK.memory.load_memory(FOLDER / "memory.safetensors", fingerprint=prints[0])),
        "accepted": refused(lambda: PACK.memory.load_memory(FOLDER / "memory.safetensors", fingerprint=prints[1])),
    }


def compiled() -> dict[str, object]:
    """core's own torch.compile wrapper, whole model and by blocks: same clip, and no new code for a second rollout."""
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = golden_model(dtype=torch.float32)
    plain, _ = through_comfyui(model, text(0), seeded(), SHAPE)
    answers = {}
    for name, keys in {"whole": ["diffusion_model"], "blocks": [f"diffusion_model.blocks.{i}" for i in (0, 1)]}.items():
        torch._dynamo.reset()
        fast = model.clone()
        set_torch_compile_wrapper(fast, backend="aot_eager", keys=keys)
        latents, _ = through_comfyui(fast, text(0), seeded(), SHAPE)
        frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        again, _ = through_comfyui(fast, text(0), seeded(), SHAPE)
        more = torch._dynamo.utils.counters["stats"]["unique_graphs"] - frames
        answers[name] = {"error": error(latents, plain), "graphs": frames, "more": more, "again": error(again, plain)}
    wan, other = model.model.diffusion_model, model.clone()
    other.add_object_patch("diffusion_model", torch.compile(wan, backend="aot_eager"))  # as other packs do it
    latents, _ = through_comfyui(other, text(0), seeded(), SHAPE)
    clean = untouched(model) and not {"rope_encode", "salt_caches"} & set(wan.__dict__)
    return answers | {"wrapped": {"error": error(latents, plain), "clean": clean}}


if __name__ == "__main__":
    run_case(conditioning, skipping, wrong_models, cancelled, overrides, replaced, reserving, fingerprints, compiled)
