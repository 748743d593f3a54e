"""Names of a Wan transformer's weights in Wan's and in diffusers' spelling.

`TOP_LEVEL` and `BLOCK` are the only place that knows both spellings; they are read left to right to load and right to
left to save. Inside the engine the diffusers spelling is used, because the student is a diffusers model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .tensor_files import CheckpointError, shorten

# Wan name -> diffusers name, without the trailing ".weight" or ".bias".
TOP_LEVEL = {
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
# The same, inside `blocks.<n>.`. Wan numbers its norms in the order of definition, diffusers in the order of execution.
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
TOP_LEVEL_TO_WAN = {diffusers: wan for wan, diffusers in TOP_LEVEL.items()}
BLOCK_TO_WAN = {diffusers: wan for wan, diffusers in BLOCK.items()}

# Name parts that FSDP, activation checkpointing, torch.compile and DDP insert anywhere in a name ...
WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module"}
# ... and prefixes that training wrappers, ComfyUI, peft and diffusers pipelines put in front of it.
PREFIXES = ("base_model", "model", "diffusion_model", "transformer")
COMFY_MODEL_PREFIX = "model.diffusion_model."

A_LORA = "a LoRA: load its base model, and add it there (ComfyUI: Load LoRA; command line: --lora; Python: lora=)"
# Pattern of a name, without wrappers and prefixes -> the kind of model that has such names, for the error message about
# a wrong file. The first that fits counts.
FOREIGN_MODELS = (
    (r".*(lora_|\.lora\.|hada_|lokr_|\.diff(_[bm])?$)", A_LORA),
    (r"(controlnet_|control_model\.|input_hint_block)", "a ControlNet"),
    (r"(encoder|decoder)\.block\.", "a T5 text encoder"),
    (r"text_model\.", "a CLIP text encoder"),
    (r"vision_model\.|visual\.", "a CLIP image encoder"),
    (r"((decoder|language_model)\.)?layers\.|embed_tokens", "a language model"),
    (r"(first_stage_model\.)?(encoder|decoder|quant_conv|post_quant_conv)\.", "an autoencoder"),
    (r"(input_blocks|middle_block|output_blocks)\.", "a Stable Diffusion UNet"),
    (r"(down_blocks|mid_block|up_blocks)\.", "a diffusers UNet"),
    (r"(double_blocks|single_blocks)\.", "a Flux or Hunyuan transformer"),
    (r"joint_blocks\.", "a Stable Diffusion 3 transformer"),
    (r"(single_)?transformer_blocks\.", "another diffusers transformer"),
)

# First parts of the names of other models, and of training state, that files hold beside a Wan transformer's weights.
BESIDE = {
    *("critic", "critic_ema", "fake_score", "real_score", "teacher", "discriminator", "generator_critic"),
    *("vae", "first_stage_model", "encoder", "decoder", "conv1", "conv2", "quant_conv", "post_quant_conv"),
    *("text_encoder", "text_encoders", "cond_stage_model", "conditioner", "clip", "text_model", "vision_model"),
    *("image_encoder", "shared", "optimizer", "optimizer_state", "optimizer_states", "lr_scheduler", "state"),
}


def strip_wrappers(name: str) -> str:
    """`name` without the parts that training wrappers insert and without the prefixes of other tools."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in PREFIXES:
        parts.pop(0)
    return ".".join(parts)


def _rename(name: str, top: Mapping[str, str], block: Mapping[str, str]) -> str | None:
    match = re.match(r"(blocks\.\d+\.)(.+)", name)
    front, rest, table = (match[1], match[2], block) if match else ("", name, top)
    for stem in (rest, rest.rpartition(".")[0]):
        if stem in table:
            return front + table[stem] + rest[len(stem) :]
    return None


def to_diffusers(name: str) -> str | None:
    """diffusers' name of a weight or module in either spelling (without wrappers); None if no Wan model has it."""
    return _rename(name, TOP_LEVEL, BLOCK) or (name if to_wan(name) else None)


def to_wan(name: str) -> str | None:
    """Wan's name of a weight in diffusers' spelling; None if no Wan model has it."""
    return _rename(name, TOP_LEVEL_TO_WAN, BLOCK_TO_WAN)


@dataclass
class MatchedNames:
    """Names of a file matched to a Wan model's weights.

    canonical: diffusers' name -> name in the file. extra: names in the file that match no weight. beside: names of
    other models' weights. spelling: "wan" or "diffusers".
    """

    canonical: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    spelling: str = "diffusers"


def match_names(names: Iterable[str], where: str) -> MatchedNames:
    """Match the names in a file to a Wan model's weights; of a whole ComfyUI checkpoint only the diffusion model's.

    Raises `CheckpointError` if two names in the file mean the same weight.
    """
    names = list(names)
    result = MatchedNames()
    if any(name.startswith(COMFY_MODEL_PREFIX) for name in names):
        result.beside = [name for name in names if not name.startswith(COMFY_MODEL_PREFIX)]
        names = [name for name in names if name.startswith(COMFY_MODEL_PREFIX)]
    for name in names:
        plain = strip_wrappers(name)
        target = to_diffusers(plain)
        if target is None:
            (result.beside if _is_of_another_model(plain) else result.extra).append(name)
            continue
        if target in result.canonical:
            raise CheckpointError(f"{where}: both {result.canonical[target]} and {name} hold the weight {target}")
        result.canonical[target] = name
        if target != plain:
            result.spelling = "wan"
    return result


def _is_of_another_model(plain: str) -> bool:
    """Whether a name that no Wan transformer has is a weight of a separate model: a critic, an autoencoder.

    Weights of unknown parts (`vace_blocks`, adapters) belong to another kind of transformer, which is not read.
    """
    first, _, rest = plain.partition(".")
    return first in BESIDE or to_diffusers(strip_wrappers(rest)) is not None


def check_is_wan(names: MatchedNames, where: str) -> None:
    """Raise `CheckpointError` unless most of the names belong to a Wan transformer, and none to AnyFlow-FAR's."""
    if any("far_patch_embedding" in name for name in (*names.extra, *names.beside)):
        raise CheckpointError(
            f"{where}: holds AnyFlow-FAR's transformer, which is read as a part of its pipeline's folder alone "
            "(--model FOLDER, with model_index.json)"
        )
    if len(names.canonical) > len(names.extra):
        return
    keys = [*names.extra, *names.canonical.values()] or names.beside
    plain = [strip_wrappers(key) for key in keys]
    kind = next((kind for part, kind in FOREIGN_MODELS if any(re.match(part, key) for key in plain)), "another model")
    raise CheckpointError(f"{where}: expected a Wan 2.1 transformer; its keys look like {kind}: {shorten(keys)}")
