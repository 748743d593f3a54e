"""The scale of every layer of a LoRA: what the product of its factors is multiplied by.

`layer_scales` is the only place that decides it, from the alpha tensors beside the factors, or from the settings that
the file or peft's adapter_config.json has. Settings that bear on the result and are not understood are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
from peft.utils.other import get_pattern_key

from ..io.fields import shown
from .tensor_files import CheckpointError, metadata_json, read_json, shorten

ADAPTER_CONFIG, ADAPTER_STEM = "adapter_config.json", "adapter_model."
DIFFUSERS_METADATA = "lora_adapter_metadata"
KOHYA_ALPHA, KOHYA_RANK = "ss_network_alpha", "ss_network_dim"

# Fields of peft's LoraConfig that decide the scale, or are checked here ...
READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "peft_type"}
# ... and those that do not change what an adapter adds. Any other field must have peft's own default.
WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "lora_bias"),
    *("megatron_config", "megatron_core", "eva_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
}
# Initialisations that leave the base model's weights alone; others (pissa, olora, ...) belong to changed ones.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
# Names of plain fields in a header or torch file that other tools use for a scale.
ALPHA_FIELDS = ("alpha", "lora_alpha", "network_alpha")
SCALE_FIELDS = ("scale", "lora_scale", "scaling", "lora_scaling")
RSLORA_FIELDS = ("rslora", "use_rslora", "rs_lora")


@dataclass(frozen=True)
class LoraSettings:
    """Rank and alpha of the layers that have no alpha of their own. alpha None: as large as the rank.

    Patterns are peft's: regular expressions of module names -> a layer's own value.
    """

    where: str
    rank: int | None = None
    alpha: float | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False

    def scale(self, module: str, rank: int) -> float:
        expected = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), module), self.rank)
        if expected is not None and expected != rank:
            raise CheckpointError(
                f"{self.where}: says rank {expected} for {module}, whose factors have rank {rank}; expected the "
                f"settings of this very LoRA"
            )
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), module), self.alpha)
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self.rslora else rank)


def layer_scales(
    file: Path, ranks: Mapping[str, int], alphas: Mapping[str, float], facts: Mapping[str, Any], kohya: bool
) -> dict[str, float]:
    """The scale of every module of a LoRA.

    ranks: of all modules, by the file's names. alphas: of those that have an alpha tensor. facts: the header's
    metadata, or what a torch file holds beside its tensors. kohya: whether the factors have kohya's names. A layer that
    nothing is said about has scale 1, as LongLive, lightx2v and ComfyUI take it.
    Raises `CheckpointError` for settings that are not understood, or that belong to other factors.
    """
    open_ranks = {module: rank for module, rank in ranks.items() if module not in alphas}
    settings = _settings(file, facts, open_ranks, kohya)
    if settings is not None:
        if unused := [p for p in settings.alpha_pattern if all(get_pattern_key([p], m) == m != p for m in ranks)]:
            raise CheckpointError(f"{settings.where}: alpha_pattern fits none of the LoRA's layers: {shorten(unused)}")
    scales = {module: alphas[module] / rank for module, rank in ranks.items() if module in alphas}
    for module, rank in open_ranks.items():
        scales[module] = 1.0 if settings is None else settings.scale(module, rank)
    if wrong := [f"{module} {scale:g}" for module, scale in scales.items() if not math.isfinite(scale) or scale == 0]:
        raise CheckpointError(f"{file}: found a scale of {shorten(wrong)}; expected a finite number other than 0")
    return scales


def _settings(file: Path, facts: Mapping[str, Any], ranks: Mapping[str, int], kohya: bool) -> LoraSettings | None:
    """What is said about the layers in `ranks`, which have no alpha tensor; None where nothing is."""
    if DIFFUSERS_METADATA in facts:
        where = f"{file}: its metadata `{DIFFUSERS_METADATA}`"
        values = metadata_json(facts, DIFFUSERS_METADATA, str(file))
        prefixed = {k.removeprefix("transformer."): v for k, v in values.items() if k.startswith("transformer.")}
        if not prefixed and any("." in key for key in values):
            raise CheckpointError(f"{where}: found {shorten(values)}; expected transformer.r and the like")
        return _peft_settings(prefixed or values, where)
    config = file.parent / ADAPTER_CONFIG
    if file.name.startswith(ADAPTER_STEM) and config.exists():
        return _peft_settings(read_json(config), str(config))
    if not ranks:
        return None
    if KOHYA_ALPHA in facts:
        return _kohya_settings(file, facts, ranks, kohya)
    _refuse_plain_fields(file, facts, ranks)
    return None


def _peft_settings(values: Mapping[str, Any], where: str) -> LoraSettings:
    kind = values.get("peft_type") or "LORA"
    if kind != "LORA":
        raise CheckpointError(f"{where}: found peft_type {shown(kind)}; expected LORA")
    defaults = peft.LoraConfig().to_dict()
    unknown = [
        f"{key}={value!r}"[:80]
        for key, value in values.items()
        if key not in READ | WITHOUT_EFFECT and value and value != defaults.get(key)
    ]
    initial = values.get("init_lora_weights", True)
    if initial not in PLAIN_INITIALISATIONS:
        unknown.append(f"init_lora_weights={shown(initial)}")
    if unknown:
        raise CheckpointError(f"{where}: found {shorten(unknown)}, which is not supported; expected a plain LoRA")
    rslora = values.get("use_rslora") or False
    if not isinstance(rslora, bool):
        raise CheckpointError(f"{where}: found use_rslora {shown(rslora)}; expected true or false")
    rank = _number(values, "r", None, where)
    return LoraSettings(
        where,
        None if rank is None else int(rank),
        _number(values, "lora_alpha", defaults["lora_alpha"], where),
        {name: int(value) for name, value in _pattern(values, "rank_pattern", where).items()},
        _pattern(values, "alpha_pattern", where),
        rslora,
    )


def _pattern(values: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    pattern = values.get(key) or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{where}: found {key} {shown(pattern)}; expected numbers by module")
    for name in pattern:
        try:
            re.compile(name)
        except re.error as error:
            raise CheckpointError(f"{where}: found {shown(name)} in {key}; expected a regular expression") from error
    return {name: number for name in pattern if (number := _number(pattern, name, None, f"{where}: {key}")) is not None}


def _number(values: Mapping[str, Any], key: str, default: float | None, where: str) -> float | None:
    value = values.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(f"{where}: found {key} {shown(value)}; expected a number")
    return value


def _kohya_settings(file: Path, facts: Mapping[str, Any], ranks: Mapping[str, int], kohya: bool) -> LoraSettings | None:
    """kohya's `ss_network_alpha`, for factors whose alpha tensors are gone.

    musubi-tuner's converter to peft's names multiplies the factors by the scale and leaves the field in the header, so
    with those names it says nothing unless the scale is 1.
    """
    text, where = str(facts[KOHYA_ALPHA]), f"{file}: its metadata `{KOHYA_ALPHA}`"
    if text.strip().lower() in ("none", "null", ""):
        return None
    try:
        alpha = float(text)
        rank = int(facts[KOHYA_RANK]) if str(facts.get(KOHYA_RANK, "")).isdecimal() else None
    except ValueError as error:
        raise CheckpointError(f"{where}: found {text[:40]!r}; expected a number") from error
    if any(word in str(facts.get("ss_network_args", "")) for word in RSLORA_FIELDS):
        raise CheckpointError(f"{file}: found rslora in its metadata `ss_network_args`, but no alpha tensors")
    if not kohya and any(alpha != rank for rank in ranks.values()):
        raise CheckpointError(
            f"{where} is {text} for rank {shorten(map(str, sorted(set(ranks.values()))))}, without alpha tensors: "
            f"converters write this with and without scaling the factors; expected `.alpha` tensors, or no such field"
        )
    return LoraSettings(where, rank, alpha)


def _refuse_plain_fields(file: Path, facts: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
    """Raise `CheckpointError` for a field of another tool that would make the scale anything but 1."""
    inner = [item for value in facts.values() if isinstance(value, Mapping) for item in value.items()]
    for key, value in [*facts.items(), *inner]:
        name, text = str(key).rpartition(".")[2].lower(), str(value).strip().lower()
        if name in RSLORA_FIELDS and text not in ("false", "none", "0", ""):
            plain = False
        elif name in ALPHA_FIELDS:
            plain = text in ("none", "") or all(_equals(text, rank) for rank in ranks.values())
        else:
            plain = name not in SCALE_FIELDS or _equals(text, 1)
        if not plain:
            raise CheckpointError(
                f"{file}: found {key} {str(value)[:40]!r} for rank {shorten(map(str, sorted(set(ranks.values()))))}, "
                f"in a form that is not known; expected `.alpha` tensors or `{DIFFUSERS_METADATA}`"
            )


def _equals(text: str, number: float) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False
