"""LoRA files of LongLive and peft: reading them, and merging them into a model through peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from diffusers import WanTransformer3DModel

from .tensor_files import CheckpointError, open_tensors, read_json, shorten
from .wan_keys import strip_wrappers, to_diffusers

LORA_KEY = "generator_lora"
FACTORS = (".lora_A", ".lora_B")
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Lora:
    """Low-rank factors by diffusers' module names, as peft expects them, with the rank and alpha that scale them."""

    path: Path
    factors: dict[str, torch.Tensor]
    rank: int
    alpha: float

    @property
    def modules(self) -> list[str]:
        return sorted({name.partition(".lora_")[0] for name in self.factors})


def is_lora(content: Mapping[str, Any]) -> bool:
    """Whether the content of a weight file is a LoRA and nothing else."""
    return LORA_KEY in content or any(factor in str(name) for name in content for factor in FACTORS)


def read_lora(path: str | Path) -> Lora:
    """A LoRA from LongLive's `.pt` ({"generator_lora": ...}), a peft folder, or any file with peft's names.

    Alpha comes from peft's adapter_config.json beside the file; without one it equals the rank, as LongLive trains it.
    Raises `CheckpointError` if the file is not a LoRA for a Wan transformer.
    """
    path = Path(path)
    file = path / ADAPTER_FILE if path.is_dir() else path
    content = open_tensors(file)[0]
    if not is_lora(content):
        raise CheckpointError(f"{file} is not a LoRA: expected {LORA_KEY} or names with lora_A and lora_B")
    factors: dict[str, torch.Tensor] = {}
    unknown = []
    for raw, tensor in content.get(LORA_KEY, content).items():
        module, factor, _ = strip_wrappers(raw).partition(".lora_")
        target = to_diffusers(module)
        if target is None or not factor or tensor.ndim != 2:
            unknown.append(raw)
        else:
            side = strip_wrappers(raw).removeprefix(module).split(".")[1]
            factors[f"{target}.{side}.weight"] = tensor
    ranks = {tensor.shape[0 if ".lora_A" in name else 1] for name, tensor in factors.items()}
    pairs = {name.replace(".lora_B.", ".lora_A.") for name in factors}
    if unknown or len(ranks) != 1 or 2 * len(pairs) != len(factors):
        found = f"{len(unknown)} unknown keys ({shorten(unknown)}), " if unknown else ""
        raise CheckpointError(
            f"{file}: expected pairs lora_A, lora_B of one rank for Wan's linear layers; found {found}"
            f"{len(factors)} factors for {len(pairs)} layers, of rank {shorten(map(str, sorted(ranks))) or 'none'}"
        )
    rank = ranks.pop()
    config = file.parent / ADAPTER_CONFIG
    alpha = read_json(config).get("lora_alpha", rank) if config.exists() else rank
    return Lora(file, factors, rank, float(alpha))


def merge_lora(model: WanTransformer3DModel, path: str | Path) -> None:
    """Add a LoRA's low-rank products to the model's weights, in place and in their dtype.

    Raises `CheckpointError` if the LoRA does not fit the model.
    """
    lora = read_lora(path)
    modules = dict(model.named_modules())
    wrong = [
        f"{name} {list(factor.shape)}"
        for name, factor in lora.factors.items()
        if not isinstance(layer := modules.get(name.partition(".lora_")[0]), torch.nn.Linear)
        or (factor.shape[1] != layer.in_features if ".lora_A" in name else factor.shape[0] != layer.out_features)
    ]
    if wrong:
        raise CheckpointError(f"{lora.path}: {len(wrong)} factors do not fit the base model: {shorten(wrong)}")
    # peft declares alpha as an int and accepts a float.
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.modules)  # type: ignore[arg-type]
    wrapped = peft.get_peft_model(model, settings, low_cpu_mem_usage=True)
    peft.set_peft_model_state_dict(
        wrapped, {f"base_model.model.{name}": factor for name, factor in lora.factors.items()}, low_cpu_mem_usage=True
    )
    wrapped.merge_and_unload(safe_merge=True)
