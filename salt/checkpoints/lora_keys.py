"""Names in LoRA files, as diffusers, peft, kohya (musubi), lightx2v and ComfyUI write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .wan_keys import BLOCK, TOP_LEVEL, strip_wrappers, to_diffusers

Part = Literal["down", "up", "up bias", "alpha", "weight", "bias"]

# End of a name -> what it holds: one of two factors, the alpha that scales them, or the difference of a whole weight.
PARTS: dict[str, Part] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_B.bias": "up bias",
    ".alpha": "alpha",
    ".diff": "weight",
    ".w_norm": "weight",
    ".diff_b": "bias",
    ".b_norm": "bias",
    ".diff_m": "weight",
}
ADAPTER_NAME = re.compile(r"(\.lora_[AB])\.(?!weight$|bias$)[^.]+\.(weight|bias)$")  # as in `.lora_A.default.weight`
# Prefixes of names whose dots are underscores.
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")

# Part of a name -> the method that has it, of those that are more than a product of two factors.
OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "hada_t": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "vera_lambda": "VeRA",
    "ia3_l": "IA3",
    "lora_mid": "LoCon with a middle factor",
    "lora_embedding_": "a LoRA of embeddings",
    "lora_E": "AdaLoRA",
    "reshape_weight": "a LoRA that changes shapes",
    "set_weight": "a file that replaces weights",
    ".a1.weight": "GLoRA",
    "modules_to_save": "peft's modules_to_save",
}


@dataclass(frozen=True)
class LoraKey:
    """What a name means. target: module (of factors and alpha) or parameter by diffusers' name. plain: the module as
    the file calls it."""

    target: str
    part: Part
    plain: str


def other_method(name: str) -> str | None:
    """The method that a tensor of this name belongs to, where it is none that can be merged here."""
    return next((method for part, method in OTHER_METHODS.items() if part in name), None)


def is_lora_name(name: str) -> bool:
    """Whether a tensor of this name is part of a LoRA or of one of its relatives."""
    return bool(other_method(name)) or ADAPTER_NAME.sub(r"\1.\2", name).endswith(tuple(PARTS))


def parse_key(raw: str) -> LoraKey | None:
    """The meaning of a tensor's name; None if it is none of a LoRA for Wan."""
    name = ADAPTER_NAME.sub(r"\1.\2", raw)
    end = next((end for end in sorted(PARTS, key=len, reverse=True) if name.endswith(end)), None)
    if end is None:
        return None
    part, stem = PARTS[end], name.removesuffix(end)
    plain = _unflattened(stem) or strip_wrappers(stem)
    if end == ".diff_m":
        plain = plain if plain.endswith("modulation") else f"{plain}.modulation"
    target = to_diffusers(plain)
    if target is None:
        return None
    if part in ("weight", "bias") and not target.endswith(("scale_shift_table", "pos_embed")):
        target = f"{target}.{part}"
    return LoraKey(target, part, plain)


def _unflattened(stem: str) -> str | None:
    """The module that a name with underscores instead of dots stands for."""
    prefix = next((prefix for prefix in FLAT_PREFIXES if stem.startswith(prefix)), None)
    if prefix is None:
        return None
    flat = stem.removeprefix(prefix)
    block = re.match(r"blocks_(\d+)_(.+)", flat)
    front, rest, table = (f"blocks.{block[1]}.", block[2], BLOCK) if block else ("", flat, TOP_LEVEL)
    names = {name.replace(".", "_"): name for pair in table.items() for name in pair}
    return front + names[rest] if rest in names else None
