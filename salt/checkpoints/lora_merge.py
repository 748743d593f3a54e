"""Add LoRAs to a model: merged into its weights, or as adapters that diffusers loads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from ..errors import InputError
from ..models.transformer_salt import SaltTransformer3DModel
from .lora import Factors, Lora, read_lora
from .tensor_files import CheckpointError, shorten


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to be added, `strength` times."""

    path: str | Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength) or self.strength == 0:
            raise InputError(
                "lora", f"found strength {self.strength:g} for {self.path}, expected a number other than 0"
            )

    @classmethod
    def parse(cls, text: str) -> LoraFile:
        """`FILE` or `FILE:STRENGTH`, as on the command line. Raises InputError for a strength that is no number."""
        if not text:
            raise InputError("lora", "found an empty name, expected a file")
        path, colon, strength = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(text)
        try:
            number = float(strength)
        except ValueError:
            if Path(path).exists():
                raise InputError("lora", f"found strength {strength!r} for {path}, expected a number") from None
            return cls(text)  # a drive's colon, or a file that does not exist
        return cls(path, number)

    def __str__(self) -> str:
        name = Path(self.path).name
        return name if self.strength == 1 else f"{name}:{self.strength:g}"


LoraSource = str | Path | LoraFile | Sequence[str | Path | LoraFile]


def lora_files(source: LoraSource | None) -> list[LoraFile]:
    """One LoRA or several, each with its strength."""
    if source is None:
        return []
    several = [source] if isinstance(source, (str, Path, LoraFile)) else source
    return [each if isinstance(each, LoraFile) else LoraFile(each) for each in several]


@torch.no_grad()
def merge_loras(model: SaltTransformer3DModel, source: LoraSource) -> None:
    """Add LoRAs to the model's weights, in place: summed in float32, rounded once to each weight's own dtype.

    Raises `CheckpointError` if a LoRA does not fit the model, which is then as it was.
    """
    files = lora_files(source)
    loras = [(read_lora(file.path), file.strength) for file in files]
    for lora, _ in loras:
        lora.check_fits(model)
    for name, parameter in model.named_parameters():
        precise = torch.promote_types(parameter.dtype, torch.float32)
        changes = [(lora.change(name, parameter, precise), strength) for lora, strength in loras]
        if any(change is not None for change, _ in changes):
            merged = parameter.detach().to(precise)
            for change, strength in changes:
                merged = merged if change is None else merged + strength * change
            # New memory: the old one may be mapped from the base model's file.
            parameter.data = merged.to(parameter.dtype)
    model.merged_loras += tuple(map(str, files))


def adapter_of(lora: Lora, model: WanTransformer3DModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A LoRA as diffusers' loader takes it: factors with its names, and the arguments of peft's LoraConfig.

    Biases become peft's `lora_bias`, and whole differences of linear layers a product of full rank.
    Raises `CheckpointError` for differences that no adapter has (norms, modulations), unless they are zero.
    """
    lora.check_fits(model)
    modules = {name.removesuffix(".base_layer"): module for name, module in model.named_modules()}
    layers, biases, wrong = dict(lora.layers), {}, []
    for name, difference in lora.differences.items():
        module, _, leaf = name.rpartition(".")
        linear = isinstance(layer := modules.get(module), nn.Linear) or hasattr(layer, "base_layer")
        if not difference.any():
            continue
        if not linear:
            wrong.append(name)
        elif leaf == "bias":
            biases[module] = difference.float()
        else:
            layers[module] = Factors(difference, torch.eye(difference.shape[0], dtype=difference.dtype), 1.0)
    if wrong:
        raise CheckpointError(
            f"{lora.path}: changes {shorten(wrong)}, which an adapter cannot; merge it when the model is loaded (lora=)"
        )
    if not layers and not biases:
        raise CheckpointError(f"{lora.path}: changes nothing (all its differences are zero)")
    parameters = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters()}
    for module in biases.keys() - layers.keys():
        out, inputs = parameters[f"{module}.weight"].shape
        layers[module] = Factors(torch.zeros(1, inputs), torch.zeros(out, 1), 1.0)
    tensors = {}
    for module, factors in layers.items():
        tensors[f"transformer.{module}.lora_A.weight"] = factors.down
        tensors[f"transformer.{module}.lora_B.weight"] = factors.up
        if biases:
            zero = torch.zeros(factors.up.shape[0])
            tensors[f"transformer.{module}.lora_B.bias"] = biases.get(module, zero) / factors.scale
    rank = Counter(factors.rank for factors in layers.values()).most_common(1)[0][0]
    pattern = {module: "^" + module.replace(".", r"\.") for module in layers}
    settings = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {pattern[m]: f.rank for m, f in layers.items() if f.rank != rank},
        "alpha_pattern": {pattern[m]: f.scale * f.rank for m, f in layers.items() if f.scale * f.rank != rank},
        "target_modules": sorted(layers),
        "lora_bias": bool(biases),
    }
    return tensors, {f"transformer.{key}": value for key, value in settings.items()}
