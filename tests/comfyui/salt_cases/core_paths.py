"""Weights, attention and patches as newer ComfyUI versions run them: scaled fp8, int8, CUDA graphs, block patches.

A case returns None where this ComfyUI does not have what it is about.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import startup
from .session import FOLDER, PACK, SIZE, error, run_case, seeded, text, through_comfyui, through_engine
from .tiny_model import output_of, refusal, rollout, tiny

SHAPE = (1, 16, 6, *SIZE)
GOLDEN = startup.GOLDEN / "tiny_a.safetensors"


def in_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale


def in_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def quantised(form: str, quantise: Callable[[Tensor], tuple[Tensor, Tensor]], **settings: object):
    """The golden model with its blocks' linear layers as core's `form`; and the weights that these stand for.

    None where core does not know the form.
    """
    if find_spec("comfy.quant_ops") is None:
        return None
    from comfy.quant_ops import QUANT_ALGOS

    if form not in QUANT_ALGOS:
        return None
    conf = json.dumps({"format": form, **settings}).encode()
    stored, meant = {}, {}
    for name, weight in load_file(GOLDEN).items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            codes, scale = quantise(weight.float())
            stem = name.removesuffix(".weight")
            stored |= {name: codes, f"{stem}.weight_scale": scale}
            stored[f"{stem}.comfy_quant"] = torch.tensor(list(conf), dtype=torch.uint8)
            meant[name] = codes.float() * scale
        else:
            stored[name] = meant[name] = weight
    path = FOLDER / f"{form}.safetensors"
    config = {"transformer": {"num_heads": startup.HEADS, "text_dim": startup.TEXT_DIM}}
    save_file({k: v.contiguous() for k, v in stored.items()}, path, metadata={"config": json.dumps(config)})
    with torch.inference_mode():  # as core's executor runs its loaders; a weight made elsewhere cannot be moved later
        return startup.load(path), meant


def student_of(weights: dict[str, Tensor]):
    """The engine's golden model with other weights, by core's names."""
    student = PACK.checkpoints.load_student(GOLDEN)
    for name, parameter in student.named_parameters():
        parameter.data = weights[PACK.wan_keys.to_wan(name)].to(torch.float32).view_as(parameter)
    return student


def by_engine(student) -> Tensor:
    return through_engine(student, PACK.conditioning.Conditioning(text(0)), seeded(), SHAPE)


def measured(form: str, quantise: Callable[[Tensor], tuple[Tensor, Tensor]]) -> dict[str, object] | None:
    """A rollout on quantised weights beside the engine's on the weights that they stand for, and on the true ones; with
    a LoRA, too; and what the memory knows of the MODEL."""
    import comfy.sd

    made = quantised(form, quantise)
    if made is None:
        return None
    model, meant = made
    layer = model.model.diffusion_model.blocks[0].self_attn.q.weight
    kind, digits = type(layer).__name__, PACK.fingerprint.fingerprint(model)
    latents, memory = through_comfyui(model, text(0), seeded(), SHAPE)
    true, expected = by_engine(PACK.checkpoints.load_student(GOLDEN)), by_engine(student_of(meant))
    name, draw = "blocks.0.ffn.2", torch.Generator().manual_seed(3)
    up, down = torch.randn(128, 4, generator=draw) * 0.2, torch.randn(4, 256, generator=draw) * 0.2
    factors = {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(model, None, factors, 1.0, 0.0)
    with_lora, _ = through_comfyui(patched, text(0), seeded(), SHAPE)
    lora = by_engine(student_of({**meant, f"{name}.weight": meant[f"{name}.weight"] + up @ down}))
    return {
        "kind": kind,
        "error": error(latents, expected),
        "error of the weights": error(expected, true),
        "error with a LoRA": error(with_lora, lora),
        "LoRA moves": error(lora, expected),
        "memory": str(memory.store.buffers[0][0].dtype),
        "same digits": digits == PACK.fingerprint.compute_fingerprint(model),
    }


def fp8() -> dict[str, object] | None:
    return measured("float8_e4m3fn", in_fp8)


def int8() -> dict[str, object] | None:
    return measured("int8_tensorwise", in_int8)


def graphs() -> dict[str, object]:
    """Core's own CUDA graphs: off in a call of the MODEL, and as they were after it. torch.compile's: the same clip."""
    from comfy.cli_args import args
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    model, seen = tiny(), []
    plain = rollout(model, seconds=0.7)[0]["samples"]
    hook = model.model.diffusion_model.blocks[0].register_forward_hook(
        lambda *_: seen.append(getattr(args, "disable_cuda_graphs", None))
    )
    rollout(model, seconds=0.7)
    hook.remove()
    with torch.inference_mode():
        compiled = output_of(TorchCompileModel, model=model, backend="cudagraphs")
    captured = rollout(compiled, seconds=0.7)[0]["samples"]
    return {
        "in a call": sorted(set(map(str, seen))),
        "after": getattr(args, "disable_cuda_graphs", None),
        "compiled": error(captured, plain),
    }


def block_patches() -> dict[str, object] | None:
    """A `double_block` patch beside the same change in place of the block; and Uni3C's, which brings a control net."""
    try:
        from comfy.ldm.wan.uni3c import WanUni3CControlnet
        from comfy_extras.nodes_model_patch import WanUni3CControlnetApply
    except ImportError:  # ComfyUI before 0.33
        return None
    import comfy.model_patcher
    import comfy.ops
    from comfy_extras.nodes_model_patch import NODE_CLASS_MAPPINGS

    import nodes

    nodes.NODE_CLASS_MAPPINGS.update(NODE_CLASS_MAPPINGS)

    def louder(values):
        return {**values, "img": values["img"] * 1.1} if values["block_index"] == 1 else values

    def louder_block(values, extra):
        return {"img": extra["original_block"](values)["img"] * 1.1}

    model, patched, replaced = tiny(), tiny(), tiny()
    patched.set_model_double_block_patch(louder)
    replaced.set_model_patch_replace(louder_block, "dit", "double_block", 1)
    clips = [rollout(m, seconds=1.5)[0]["samples"] for m in (model, patched, replaced)]
    dim = model.model.diffusion_model.dim
    sizes = dict(conv_out_dim=dim, dim=dim, ffn_dim=dim, num_heads=2, num_layers=1, time_embed_dim=dim)
    net = WanUni3CControlnet(**sizes, out_proj_dim=dim, operations=comfy.ops.manual_cast)
    cpu = torch.device("cpu")
    patch = comfy.model_patcher.ModelPatcher(net, load_device=cpu, offload_device=cpu)
    inputs = dict(vae=None, render_video=torch.zeros(5, 64, 64, 3), strength=1.0, start_percent=0.0, end_percent=1.0)
    return {
        "error": error(clips[1], clips[2]),
        "moved": error(clips[1], clips[0]),
        "uni3c": refusal(rollout, output_of(WanUni3CControlnetApply, model=model, model_patch=patch, **inputs)),
    }


def attention_backend() -> dict[str, object] | None:
    """Core's ModelAttentionBackend, and how often an attention that is set that way is called for a layer."""
    try:
        from comfy_extras.nodes_model_advanced import ModelAttentionBackend
    except ImportError:  # ComfyUI before 0.33
        return None
    from comfy.ldm.modules.attention import attention_pytorch

    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return attention_pytorch(*args, **kwargs)

    model, own = tiny(), tiny()
    own.set_model_optimized_attention(counted)
    set_by_node = output_of(ModelAttentionBackend, model=model, attention="pytorch attention")
    plain, by_node = (rollout(m, seconds=0.7)[0]["samples"] for m in (model, set_by_node))
    forwards, wan = [], own.model.diffusion_model
    wan.head.register_forward_hook(lambda *_: forwards.append(1))
    by_own = rollout(own, seconds=0.7)[0]["samples"]
    return {
        "node": error(by_node, plain),
        "own": error(by_own, plain),
        "calls per layer": len(calls) / len(wan.blocks),
        "forwards": len(forwards),
    }


if __name__ == "__main__":
    run_case(fp8, int8, graphs, block_patches, attention_backend)
