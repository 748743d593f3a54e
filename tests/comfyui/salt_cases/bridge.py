"""A stock MODEL in core's sampling, beside reference tensors and the engine."""

from __future__ import annotations

import json
import runpy
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

from . import startup
from .session import (
    FOLDER,
    PACK,
    SIZE,
    TWO_STEPS,
    error,
    golden_model,
    run_case,
    seeded,
    text,
    through_comfyui,
    through_engine,
)

Conditioning = PACK.conditioning.Conditioning
RecordedNoise = runpy.run_path(str(startup.ROOT / "tests/helpers/recorded_noise.py"))["RecordedNoise"]
TINY = startup.GOLDEN / "tiny_a.safetensors"


def goldens() -> dict[str, float]:
    """Relative error of every published rollout, plain and fused."""
    model = golden_model(dtype=torch.float32)
    rows = json.loads((startup.GOLDEN / "rollouts.json").read_text())
    return {f"{row['case']}{' fused' * fuse}": _golden(model, row, fuse) for row in rows for fuse in (False, True)}


def _golden(model, row: dict, fuse: bool) -> float:
    data = load_file(startup.GOLDEN / f"rollout_{row['case']}.safetensors")
    noise, renoise, start_frames = data["noise"].transpose(1, 2), data["renoise"].transpose(2, 3), row["init_frames"]
    settings = PACK.rollout.RolloutSettings(
        PACK.schedule.Schedule(tuple(row["steps"])), frames_per_block=row["frames_per_block"], fuse=fuse
    )
    frames = start_frames + row["blocks"] * row["frames_per_block"]
    latents, _ = through_comfyui(
        model,
        data["context"],
        RecordedNoise(noise, renoise, start_frames),
        (*noise.shape[:2], frames, *noise.shape[3:]),
        settings,
        _policy(row),
        initial=data["initial_latent"].transpose(1, 2) if start_frames else None,
    )
    expected = data["latents"].transpose(1, 2)
    return error(latents[:, :, latents.shape[2] - expected.shape[2] :], expected)


def _policy(row: dict):
    window, sink = row["window_frames"], row["sink_frames"]
    if window < 0:
        return PACK.memory.MemoryPolicy()
    kind = "relative" if row["source"] == "infinity-rope" else "sink" if sink else "window"
    return PACK.memory.MemoryPolicy(kind, window, sink)


def guidance() -> dict[str, float]:
    """Guidance 3 in core's sampling beside the engine's own; and how far guidance moves the clip at all."""
    settings = PACK.rollout.RolloutSettings(TWO_STEPS.schedule, guidance=3.0)
    model, student, shape = golden_model(dtype=torch.float32), PACK.checkpoints.load_student(TINY), (1, 16, 9, *SIZE)
    latents, _ = through_comfyui(model, text(0), seeded(), shape, settings, negative=text(1))
    guided = through_engine(student, Conditioning(text(0)), seeded(), shape, settings, negative=Conditioning(text(1)))
    plain = through_engine(student, Conditioning(text(0)), seeded(), shape)
    return {"error": error(latents, guided), "moved": error(plain, guided)}


def batch() -> dict[str, float]:
    """Two clips with prompts of their own in one batch, beside the engine's batch; one text serves all rows, too."""
    model, student, shape = golden_model(dtype=torch.float32), PACK.checkpoints.load_student(TINY), (2, 16, 6, *SIZE)
    two, _ = through_comfyui(model, text(0, 2), seeded(2), shape)
    one, _ = through_comfyui(model, text(0), seeded(2), shape)
    shared = Conditioning(text(0).expand(2, -1, -1))
    return {
        "own prompts": error(two, through_engine(student, Conditioning(text(0, 2)), seeded(2), shape)),
        "one prompt": error(one, through_engine(student, shared, seeded(2), shape)),
    }


def lora() -> dict[str, float]:
    """A LoRA that core applies at load, or as a hook of the conditioning, beside the engine's; and what it moves"""
    import comfy.hooks
    import comfy.sd

    draw = torch.Generator().manual_seed(3)
    factors = {}
    for layer in range(2):
        for name, rows, columns in (("self_attn.q", 128, 128), ("self_attn.v", 128, 128), ("ffn.0", 256, 128)):
            stem = f"diffusion_model.blocks.{layer}.{name}"
            factors[f"{stem}.lora_A.weight"] = torch.randn(4, columns, generator=draw) * 0.1
            factors[f"{stem}.lora_B.weight"] = torch.randn(rows, 4, generator=draw) * 0.1
    save_file(factors, FOLDER / "lora.safetensors")
    model, shape = golden_model(dtype=torch.float32), (1, 16, 6, *SIZE)
    patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(FOLDER / "lora.safetensors"), 1.0, 0.0)
    latents, _ = through_comfyui(patched, text(0), seeded(), shape)
    student = PACK.checkpoints.load_student(TINY, lora=FOLDER / "lora.safetensors")
    expected = through_engine(student, Conditioning(text(0)), seeded(), shape)
    plain = through_engine(PACK.checkpoints.load_student(TINY), Conditioning(text(0)), seeded(), shape)
    again, _ = through_comfyui(model, text(0), seeded(), shape)
    group = comfy.hooks.create_hook_lora(load_file(FOLDER / "lora.safetensors"), 1.0, 0.0)
    hooked, _ = through_comfyui(model, [[text(0), {"hooks": group}]], seeded(), shape)
    return {
        "error": error(latents, expected),
        "error as a hook": error(hooked, expected),
        "moved": error(plain, expected),
        "unpatched": error(again, plain),
    }


def fp8() -> dict[str, object]:
    """fp8 weights, computed in float32: exact against the engine with the same rounded weights; and as core casts."""
    shape = (1, 16, 6, *SIZE)
    student, rounded = PACK.checkpoints.load_student(TINY), PACK.checkpoints.load_student(TINY)
    model = golden_model(dtype=torch.float8_e4m3fn)
    stored = {k.replace("diffusion_model.", ""): v for k, v in model.model.state_dict().items()}
    names = {PACK.wan_keys.to_wan(name): p for name, p in rounded.named_parameters()}
    for name, parameter in names.items():
        parameter.data = stored[name].to(torch.float32).view_as(parameter)
    exact = model.clone()
    exact.set_model_compute_dtype(torch.float32)
    latents, memory = through_comfyui(exact, text(0), seeded(), shape)
    reference = through_engine(student, Conditioning(text(0)), seeded(), shape)
    expected = through_engine(rounded, Conditioning(text(0)), seeded(), shape)
    half = model.clone()
    half.set_model_compute_dtype(torch.bfloat16)
    bf16, bf16_memory = through_comfyui(half, text(0), seeded(), shape)
    cast, cast_memory = through_comfyui(model, text(0), seeded(), shape)
    return {
        "error": error(latents, expected),
        "error of fp8 itself": error(expected, reference),
        "error as core casts": error(cast, reference),
        "error in bfloat16": error(bf16, reference),
        "memory": [str(m.store.buffers[0][0].dtype) for m in (memory, cast_memory, bf16_memory)],
        "weights": str(stored["blocks.0.self_attn.q.weight"].dtype),
    }


def image_to_video() -> dict[str, float]:
    """Wan 2.1 I2V: 36 channels, CLIP embeddings; channels are cut to each block, plain and fused. Beside the engine."""
    torch.manual_seed(2)
    student = PACK.transformer_salt.SaltTransformer3DModel(
        num_attention_heads=2, in_channels=36, ffn_dim=256, num_layers=2, image_dim=1280, added_kv_proj_dim=256
    ).eval()
    with torch.no_grad():
        student.proj_out.weight.normal_(std=0.1)
    path = PACK.checkpoints.save_wan(student, FOLDER / "i2v.safetensors")
    model = startup.load(path, dtype=torch.float32, plain=True)
    frames, shape = 9, (1, 16, 9, *SIZE)
    draw = torch.Generator().manual_seed(4)
    latents = torch.randn(shape, generator=draw)
    mask = torch.ones(1, 1, frames, *SIZE)
    mask[:, :, :2] = 0  # in core's mask, 0 marks the frames of the image
    clip = torch.randn(1, 257, 1280, generator=draw)
    options = {
        "concat_latent_image": model.model.process_latent_out(latents),
        "concat_mask": mask,
        "clip_vision_output": SimpleNamespace(penultimate_hidden_states=clip),
    }
    words = text(0, width=4096)
    channels = torch.cat([1 - mask.expand(-1, 4, -1, -1, -1), latents], dim=1)
    errors = {}
    for fuse in (False, True):
        settings = PACK.rollout.RolloutSettings(TWO_STEPS.schedule, fuse=fuse)
        output, _ = through_comfyui(model, [[words, options]], seeded(), shape, settings)
        expected = through_engine(student, Conditioning(words, clip, channels), seeded(), shape, settings)
        errors["fused" if fuse else "plain"] = error(output, expected)
    other = through_engine(student, Conditioning(words, clip, channels.roll(3, dims=2)), seeded(), shape)
    return {**errors, "moved": error(other, expected)}


def lora_files() -> dict[str, float]:
    """Largest difference of any weight after core's LoRA loader and after the engine's, per kind of file."""
    import comfy.lora
    import comfy.sd

    model = golden_model(dtype=torch.float32)
    base = model.model.state_dict()
    draw = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.1

    def pair(layer: str, ends: str, rank: int) -> dict[str, torch.Tensor]:
        down, up = ends.split()
        return {f"{layer}.{down}.weight": random(rank, 128), f"{layer}.{up}.weight": random(128, rank)}

    flat, dotted = "lora_unet_blocks_1_self_attn_q", "diffusion_model.blocks.0.cross_attn.o"
    files = {
        "peft": pair(dotted, "lora_A lora_B", 4) | pair("diffusion_model.blocks.1.self_attn.v", "lora_A lora_B", 8),
        "musubi": pair(flat, "lora_down lora_up", 4) | {f"{flat}.alpha": torch.tensor(1.5)},
        "lightx2v": pair(dotted, "lora_down lora_up", 4)
        | {
            f"{dotted}.diff_b": random(128),
            "diffusion_model.blocks.0.norm3.diff": random(128),
            "diffusion_model.blocks.0.modulation.diff": random(1, 6, 128),
            "diffusion_model.head.head.diff": random(64, 128),
        },
        "adapter name": pair(dotted, "lora_A.default lora_B.default", 4),
    }
    errors = {}
    for name, tensors in files.items():
        path = FOLDER / f"{name}.safetensors"
        save_file(tensors, path)
        patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(path), 0.7, 0.0)
        student = PACK.checkpoints.load_student(TINY, lora=PACK.checkpoints.LoraFile(path, 0.7)).state_dict()
        changed, worst = 0, 0.0
        for weight, tensor in student.items():
            key = f"diffusion_model.{PACK.checkpoints.wan_keys.to_wan(weight)}"
            expected = base[key].float().clone()
            if key in patched.patches:
                expected = comfy.lora.calculate_weight(patched.patches[key], expected, key)
                changed += not torch.equal(expected, base[key].float())
            worst = max(worst, (expected - tensor.float()).abs().max().item())
        parts = {key.partition(".lora_")[0].removesuffix(".alpha") for key in tensors}
        errors[name] = worst if changed == len(parts) else float(changed)
    return errors


if __name__ == "__main__":
    run_case(goldens, guidance, batch, lora, lora_files, fp8, image_to_video)
