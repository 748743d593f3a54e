"""Every node of core's that takes and returns a MODEL, before Salt Rollout: what it changes, or why it is refused."""

from __future__ import annotations

import asyncio
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

from .session import FOLDER, error, run_case
from .tiny_model import OTHER, PROMPT, part, rollout, text, tiny

# Settings other than a node's defaults, where those would do nothing to this MODEL.
SET = {"scaling_factor": 1.2, "cfg": 5.0, "ratio": 0.5, "noise_scale": 1.5, "shift": 9.0, "scale_t": 2.0}
SET |= {"strength_model": 1.0, "tsr_k": 0.5, "dtype": "bf16", "double_layers": "1", "single_layers": "1"}
SET |= {"start_percent": 0.0, "end_percent": 1.0, "layers": "1", "nerf_tile_size": 8, "multiplier": 0.7}
SET |= {"freq_cutoff": 2}
# Speed only; `bridge_faults.compiled` covers it.
NOT_RUN = ("TorchCompileModel",)


def core_nodes() -> dict[str, type]:
    """Core's nodes, its extra ones included, by their ids."""
    import nodes

    asyncio.run(nodes.init_builtin_extra_nodes())
    return nodes.NODE_CLASS_MAPPINGS


def inputs_of(node: type) -> dict[str, tuple[object, dict[str, object]]]:
    """Type and settings of every socket and widget, by name."""
    declared = node.INPUT_TYPES()
    both = {**declared.get("required", {}), **declared.get("optional", {})}
    return {name: (d[0], d[1] if len(d) > 1 else {}) for name, d in both.items()}


def changes_a_model(node: type) -> bool:
    return "MODEL" in [kind for kind, _ in inputs_of(node).values()] and "MODEL" in node.RETURN_TYPES


def other_inputs() -> dict[str, object]:
    """Inputs that are files or come from other nodes, by their names or types."""
    import folder_paths

    factors, width = {}, tiny().model.diffusion_model.dim
    for layer in range(4):
        stem = f"diffusion_model.blocks.{layer}.self_attn.q"
        factors |= {f"{stem}.lora_A.weight": torch.ones(1, width), f"{stem}.lora_B.weight": torch.ones(width, 1) * 0.1}
    save_file(factors, FOLDER / "lora.safetensors")
    torch.save({"activation_func": "linear", "layer_structure": [1, 2, 1]}, FOLDER / "hyper.pt")
    for kind in ("loras", "hypernetworks"):
        folder_paths.add_model_folder_path(kind, str(FOLDER))
    audio = MagicMock(audio_sample_rate=16000)
    audio.encode.return_value = torch.zeros(1, 2, 3, 4)
    return {
        "lora_name": "lora.safetensors",
        "hypernetwork_name": "hyper.pt",
        "lora": factors,
        "clip": None,
        "audio_vae": audio,
        "reference_audio": {"waveform": torch.zeros(1, 2, 100), "sample_rate": 16000},
        "operation": lambda latent: latent * 0.5,
        "device": "default",
        "vae": part("nodes.adapter.tiny_model").load_vae(),
        "MODEL_PATCH": MagicMock(),
        "IMAGE": torch.zeros(1, 64, 64, 3),
        "CONDITIONING": text(OTHER),
        "LATENT": {"samples": torch.zeros(1, 16, 3, 8, 8)},
        "CLIP_VISION_OUTPUT": MagicMock(),
    }


def arguments(node: type, model, given: dict[str, object]) -> dict[str, object]:
    found = {}
    for name, (kind, settings) in inputs_of(node).items():
        if kind == "MODEL":
            found[name] = model if not found else other_model()
        elif name in given or str(kind) in given:
            found[name] = given[name] if name in given else given[str(kind)]
        elif "." in name or name in SET:  # ratios of merged weights
            found[name] = SET.get(name, 0.5)
        elif isinstance(kind, list) or kind == "COMBO":
            found[name] = settings.get("default", (kind if isinstance(kind, list) else settings["options"])[0])
        elif "default" in settings:
            found[name] = settings["default"]
    return found


def other_model():
    model = tiny()
    model.model.diffusion_model.head.head.weight.data *= 1.5
    return model


def output(node: type, inputs: dict[str, object]):
    outputs = node.execute(**inputs) if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(**inputs)
    return getattr(outputs, "args", outputs)[list(node.RETURN_TYPES).index("MODEL")]


@torch.inference_mode()
def by_core(model) -> torch.Tensor:
    """A clip by core's own sampler, whole."""
    import comfy.sample

    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    conds = text(PROMPT), text(OTHER)
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "simple", *conds, torch.zeros_like(noise), seed=0)


def by_salt(model) -> torch.Tensor:
    return rollout(model, seconds=0.7, cfg=3.0, negative=text(OTHER))[0]["samples"]


def every_node() -> dict[str, str]:
    """By id: `changed`, `neutral` (core's own sampler gives the same with and without it, too), an error, or nothing.

    An error of the node itself begins with `node: `; of ours it ends with the number of model calls before it.
    """
    model, given = tiny(), other_inputs()
    plain, whole = by_salt(model), by_core(model)
    nodes = {name: node for name, node in sorted(core_nodes().items()) if changes_a_model(node)}
    return {name: effect(node, model, given, plain, whole) for name, node in nodes.items() if name not in NOT_RUN}


def effect(node: type, model, given: dict[str, object], plain: torch.Tensor, whole: torch.Tensor) -> str:
    try:
        patched = output(node, arguments(node, model, given))
    except Exception as fault:  # noqa: BLE001 - whatever a node for other models says about Wan
        return f"node: {fault}"
    base, calls = patched.model, []
    apply_model = base.apply_model
    base.apply_model = lambda *a, **k: (calls.append(1), apply_model(*a, **k))[1]
    try:
        moved = error(by_salt(patched), plain)
    except ValueError as fault:
        return f"{fault} [{len(calls)} calls]"
    finally:
        del base.apply_model
    if moved > 1e-5:
        return "changed"
    return "neutral" if error(by_core(patched), whole) <= 1e-5 else "passed over"


if __name__ == "__main__":
    run_case(every_node)
