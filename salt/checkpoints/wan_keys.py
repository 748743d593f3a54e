"""The checkpoint room's dictionary: Wan's names and diffusers' names for the same weights, and what shapes tell.

`TOP` and `BLOCK` are the only place that knows both spellings; they are read left to right to load and right to left
to save. The canonical spelling inside the engine is diffusers', because the student is a diffusers model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel

from .errors import CheckpointError, some

# Wan name -> diffusers name, without the trailing ".weight" or ".bias".
TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
# The same, inside `blocks.<n>.`. Wan counts its norms in the order it made them, diffusers in the order it runs them.
BLOCK = {
    "modulation": "scale_shift_table",
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "norm3": "norm2",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
TOP_BACK = {diffusers: wan for wan, diffusers in TOP.items()}
BLOCK_BACK = {diffusers: wan for wan, diffusers in BLOCK.items()}

# What FSDP, activation checkpointing, torch.compile and DDP insert, anywhere in a name ...
WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module"}
# ... and what owners put in front of it (training wrappers, ComfyUI, peft, diffusers pipelines).
OWNERS = ("base_model", "model", "diffusion_model", "transformer")
COMFY_CHECKPOINT = "model.diffusion_model."

# Wan's own configs, ComfyUI's metadata and the golden files each have their word for the same number.
CONFIG_WORDS = {
    "num_heads": "num_attention_heads",
    "heads": "num_attention_heads",
    "layers": "num_layers",
    "ffn": "ffn_dim",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
}
KNOWN_CLASSES = {"WanTransformer3DModel", "SaltTransformer3DModel", "WanModel", "CausalWanModel"}
# A wrong file is named by what it most looks like.
STRANGERS = (
    ("input_blocks.", "a Stable Diffusion UNet"),
    ("down_blocks.", "a diffusers UNet"),
    ("double_blocks.", "a Flux or Hunyuan transformer"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("transformer_blocks.", "another diffusers transformer"),
    ("encoder.block.", "a T5 text encoder"),
    ("decoder.", "an autoencoder"),
    ("lora_", "a LoRA: give it as lora= together with its base model"),
)


def bare(name: str) -> str:
    """`name` without training wrappers anywhere and without owners in front of it."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in OWNERS:
        parts.pop(0)
    return ".".join(parts)


def _rename(name: str, top: Mapping[str, str], block: Mapping[str, str]) -> str | None:
    found = re.match(r"(blocks\.\d+\.)(.+)", name)
    front, rest, table = (found[1], found[2], block) if found else ("", name, top)
    for stem in (rest, rest.rpartition(".")[0]):
        if stem in table:
            return front + table[stem] + rest[len(stem) :]
    return None


def to_diffusers(name: str) -> str | None:
    """diffusers' name of a bare weight or module name in either spelling; None where it is no part of a Wan model."""
    return _rename(name, TOP, BLOCK) or (name if to_wan(name) else None)


def to_wan(name: str) -> str | None:
    """Wan's name of a weight in diffusers' spelling; None where it is no part of a Wan model."""
    return _rename(name, TOP_BACK, BLOCK_BACK)


@dataclass
class Names:
    """What the names in a file are: `canonical` maps diffusers' name to the name in the file; `extra` match nothing."""

    canonical: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    spelling: str = "diffusers"


def sort_names(names: Iterable[str], where: str) -> Names:
    """Match the names of a file to the model's. Of a whole ComfyUI checkpoint only the diffusion model is looked at.

    Raises `CheckpointError` if two names in the file mean the same weight.
    """
    names = list(names)
    if any(name.startswith(COMFY_CHECKPOINT) for name in names):
        names = [name for name in names if name.startswith(COMFY_CHECKPOINT)]
    result = Names()
    for name in names:
        plain = bare(name)
        target = to_diffusers(plain)
        if target is None:
            result.extra.append(name)
            continue
        if target in result.canonical:
            raise CheckpointError(f"{where}: both {result.canonical[target]} and {name} hold the weight {target}")
        result.canonical[target] = name
        if target != plain:
            result.spelling = "wan"
    return result


def infer_config(shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """The model class's configuration, from `shapes` (by diffusers' names) and whatever `given` adds to them.

    `given` is a config.json or the metadata's `config`, in Wan's, ComfyUI's or diffusers' words. It decides what
    shapes cannot tell (heads, eps); without it a head is 128 wide, as in every Wan 2.1. Where both speak they must
    agree.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f"{where}: {name} is missing, so the model's configuration cannot be inferred")
        return tuple(shapes[name])

    embedding, block = shape("patch_embedding.weight"), "blocks.0."
    if len(embedding) != 5:
        raise CheckpointError(
            f"{where}: patch_embedding.weight has shape {list(embedding)}: an image model; a video model's patch "
            f"embedding has five axes"
        )
    inner, patch = embedding[0], embedding[2:]
    image = "condition_embedder.image_embedder."
    config: dict[str, Any] = {
        "patch_size": patch,
        "in_channels": embedding[1],
        "out_channels": shape("proj_out.weight")[0] // prod(patch),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "ffn_dim": shape(block + "ffn.net.0.proj.weight")[0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "cross_attn_norm": block + "norm2.weight" in shapes,
        "qk_norm": "rms_norm_across_heads" if block + "attn1.norm_q.weight" in shapes else None,
        "image_dim": shape(image + "norm1.weight")[0] if image + "norm1.weight" in shapes else None,
        "added_kv_proj_dim": inner if block + "attn2.add_k_proj.weight" in shapes else None,
        "pos_embed_seq_len": shape(image + "pos_embed")[1] if image + "pos_embed" in shapes else None,
    }
    said = _plain_config(given or {}, where)
    heads = said.get("num_attention_heads", inner // 128)
    if not heads or inner % heads:
        raise CheckpointError(
            f"{where}: {inner} channels do not divide into heads of 128; a `config` with num_heads must say how many"
        )
    config |= {"num_attention_heads": heads, "attention_head_dim": inner // heads}
    for key in ("eps", "rope_max_seq_len"):
        if key in said:
            config[key] = said[key]
    inferred = {"dim": inner} | config
    differ = [f"{k} {said[k]!r} (tensors: {inferred[k]!r})" for k in sorted(said) if said[k] != inferred.get(k)]
    if differ:
        raise CheckpointError(f"{where}: its configuration does not fit its tensors: {some(differ)}")
    return config


def _plain_config(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The numbers of a config in any dialect, by diffusers' words; what the tensors alone decide is left out."""
    if given.get("_class_name", "WanModel") not in KNOWN_CLASSES:
        raise CheckpointError(f"{where}: it is a {given['_class_name']}; expected a Wan 2.1 transformer")
    inner = given.get("transformer", given)
    known = {CONFIG_WORDS.get(key, key): value for key, value in inner.items()}
    numbers = ("num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim", "in_channels", "out_channels")
    return {
        key: known[key]
        for key in (*numbers, "dim", "text_dim", "freq_dim", "eps", "rope_max_seq_len")
        if known.get(key) is not None
    }


def metadata_json(metadata: Mapping[str, str], key: str, where: str) -> dict[str, Any]:
    """A JSON object out of a file's metadata; {} where there is none."""
    if key not in metadata:
        return {}
    try:
        value = json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where}: its metadata `{key}` is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: its metadata `{key}` is {value!r}; expected an object")
    return value


def variant_of(config: Mapping[str, Any], where: str) -> str:
    """T2V, I2V or FLF2V (first and last frame), by the channels the model takes: latents, or latents + mask + image."""
    inputs, outputs = config["in_channels"], config["out_channels"]
    if inputs == outputs:
        return "T2V"
    if inputs == 2 * outputs + 4:
        return "FLF2V" if config["pos_embed_seq_len"] else "I2V"
    raise CheckpointError(
        f"{where}: a Wan model with {inputs} input and {outputs} output channels; expected {outputs} inputs (T2V) or "
        f"{2 * outputs + 4} (I2V)"
    )


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight that a model of this configuration has, with its shape. Allocates nothing."""
    with init_empty_weights(include_buffers=True):
        model = WanTransformer3DModel(**config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], extra: Iterable[str], config: Mapping[str, Any], where: str
) -> None:
    """One `CheckpointError` that tells all missing, unexpected and misshapen weights, if there are any."""
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in shapes]
    unexpected = [*extra, *(name for name in shapes if name not in expected)]
    misshapen = [
        f"{name} {list(shape)} (expected {list(expected[name])})"
        for name, shape in shapes.items()
        if name in expected and tuple(shape) != expected[name]
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    told = "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in faults if names)
    if told:
        raise CheckpointError(f"{where}: its weights are not those of a Wan 2.1 transformer of its size. {told}")


def refuse_stranger(names: Names, where: str) -> None:
    """Raise `CheckpointError` if fewer names than not belong to a Wan transformer."""
    if len(names.canonical) > len(names.extra):
        return
    found = [*names.extra, *names.canonical.values()]
    looks = next((what for part, what in STRANGERS if any(part in name for name in found)), "another model")
    raise CheckpointError(f"{where}: expected a Wan 2.1 transformer; its keys look like {looks}: {some(found)}")
