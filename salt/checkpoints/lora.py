"""The checkpoint room's extension: LoRA files of LongLive and peft, merged into a student through peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from diffusers import WanTransformer3DModel

from .errors import CheckpointError, some
from .tensor_files import open_tensors, read_json
from .wan_keys import bare, to_diffusers

BRANCH = "generator_lora"
FACTORS = (".lora_A", ".lora_B")
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Lora:
    """Low-rank factors by diffusers' module names, as peft wants them, and the two numbers that scale them."""

    path: Path
    factors: dict[str, torch.Tensor]
    rank: int
    alpha: float

    @property
    def modules(self) -> list[str]:
        return sorted({name.partition(".lora_")[0] for name in self.factors})


def is_lora(content: Mapping[str, Any]) -> bool:
    """Whether an opened weight file is a LoRA and nothing else."""
    return BRANCH in content or any(factor in str(name) for name in content for factor in FACTORS)


def read_lora(path: str | Path) -> Lora:
    """A LoRA from LongLive's `.pt` ({"generator_lora": ...}), a peft folder, or any file with peft's names.

    Its alpha comes from peft's adapter_config.json beside it; without one it equals the rank, as LongLive trains it.
    Raises `CheckpointError` if the file is no such LoRA for a Wan transformer.
    """
    path = Path(path)
    file = path / ADAPTER_FILE if path.is_dir() else path
    content = open_tensors(file)[0]
    if not is_lora(content):
        raise CheckpointError(f"{file} is no LoRA: expected {BRANCH} or names with lora_A and lora_B")
    factors: dict[str, torch.Tensor] = {}
    foreign = []
    for raw, tensor in content.get(BRANCH, content).items():
        module, factor, _ = bare(raw).partition(".lora_")
        target = to_diffusers(module)
        if target is None or not factor or tensor.ndim != 2:
            foreign.append(raw)
        else:
            side = bare(raw).removeprefix(module).split(".")[1]
            factors[f"{target}.{side}.weight"] = tensor
    ranks = {tensor.shape[0 if ".lora_A" in name else 1] for name, tensor in factors.items()}
    pairs = {name.replace(".lora_B.", ".lora_A.") for name in factors}
    if foreign or len(ranks) != 1 or 2 * len(pairs) != len(factors):
        found = f"{len(foreign)} unknown keys ({some(foreign)}), " if foreign else ""
        raise CheckpointError(
            f"{file}: expected pairs lora_A, lora_B of one rank for Wan's linear layers; found {found}"
            f"{len(factors)} factors for {len(pairs)} layers, of rank {some(map(str, sorted(ranks))) or 'none'}"
        )
    rank = ranks.pop()
    config = file.parent / ADAPTER_CONFIG
    alpha = read_json(config).get("lora_alpha", rank) if config.exists() else rank
    return Lora(file, factors, rank, float(alpha))


def merge_lora(model: WanTransformer3DModel, path: str | Path) -> None:
    """Add a LoRA's products to the model's own weights, in place and in their dtype."""
    lora = read_lora(path)
    modules = dict(model.named_modules())
    wrong = [
        f"{name} {list(factor.shape)}"
        for name, factor in lora.factors.items()
        if not isinstance(layer := modules.get(name.partition(".lora_")[0]), torch.nn.Linear)
        or (factor.shape[1] != layer.in_features if ".lora_A" in name else factor.shape[0] != layer.out_features)
    ]
    if wrong:
        raise CheckpointError(f"{lora.path}: {len(wrong)} factors do not fit the base model: {some(wrong)}")
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.modules)  # type: ignore[arg-type]
    wrapped = peft.get_peft_model(model, settings, low_cpu_mem_usage=True)  # type: ignore[arg-type]
    peft.set_peft_model_state_dict(
        wrapped, {f"base_model.model.{name}": factor for name, factor in lora.factors.items()}, low_cpu_mem_usage=True
    )
    wrapped.merge_and_unload(safe_merge=True)  # type: ignore[operator]
