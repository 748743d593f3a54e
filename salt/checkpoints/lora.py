"""LoRA files of every spelling: what they add to which weight of a Wan transformer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .lora_keys import is_lora_name, other_method, parse_key
from .lora_scale import layer_scales
from .tensor_files import SUFFIXES, CheckpointError, open_tensors, shorten

LORA_KEY, CRITIC_KEY = "generator_lora", "critic_lora"
# Files that hold the LoRA of a folder, by preference: peft's, diffusers'.
FOLDER_FILES = (
    *("adapter_model.safetensors", "adapter_model.bin"),
    *("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
)


@dataclass(frozen=True)
class Factors:
    """`scale * up @ down` is added to a layer's weight."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        up, down = (factor.to(device, dtype).flatten(1) for factor in (self.up, self.down))
        return self.scale * (up @ down)


@dataclass(frozen=True)
class Lora:
    """What a LoRA file adds to a Wan transformer, all by diffusers' names.

    layers: factors by module. differences: of whole weights and biases, by parameter. names: peft, kohya or LongLive.
    """

    path: Path
    layers: dict[str, Factors]
    differences: dict[str, Tensor]
    names: str

    def check_fits(self, model: nn.Module) -> None:
        """Raise `CheckpointError` unless the model has every weight that is changed, in that shape."""
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        # A model that has adapters keeps its own layers inside theirs.
        shapes = {name.replace(".base_layer.", "."): shape for name, shape in shapes.items()}
        wrong = []
        for module, factors in self.layers.items():
            shape = shapes.get(f"{module}.weight", ())
            if len(shape) < 2 or factors.up.shape[0] != shape[0]:
                wrong.append(f"{module}.lora_B.weight {list(factors.up.shape)}")
            if len(shape) < 2 or math.prod(factors.down.shape[1:]) != math.prod(shape[1:]):
                wrong.append(f"{module}.lora_A.weight {list(factors.down.shape)}")
        for name, difference in self.differences.items():
            if shapes.get(name) != tuple(difference.shape):
                wrong.append(f"{name} {list(difference.shape)}")
        tensors = {
            name: x for module, f in self.layers.items() for name, x in ((f"{module} down", f.down), (module, f.up))
        }
        if bad := [name for name, x in {**tensors, **self.differences}.items() if not x.isfinite().all()]:
            raise CheckpointError(f"{self.path}: found values that are not finite (NaN or infinity) for {shorten(bad)}")
        if wrong:
            raise CheckpointError(f"{self.path}: {len(wrong)} tensors do not fit the base model: {shorten(wrong)}")

    def change(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What is added to the parameter `name`, in its shape; None where nothing is."""
        if name in self.differences:
            return self.differences[name].to(weight.device, dtype)
        factors = self.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return None if factors is None else factors.product(weight.device, dtype).reshape(weight.shape)

    def summary(self) -> dict[str, Any]:
        """For display: adapted layers, rank, alpha and scale; "4 to 16" where layers differ."""
        factors = self.layers.values()
        return {
            "layers": len(self.layers) or None,
            "rank": _range(f.rank for f in factors),
            "alpha": _range(f.rank * f.scale for f in factors),
            "scale": _range(f.scale for f in factors),
            "whole differences": len(self.differences) or None,
        }


def is_lora(content: Mapping[str, Any]) -> bool:
    """Whether the content of a weight file is a LoRA and nothing else."""
    return LORA_KEY in content or any(map(is_lora_name, content))


def read_lora(path: str | Path) -> Lora:
    """A LoRA in a file or folder, with the names of diffusers, peft, kohya (musubi), lightx2v, ComfyUI or LongLive.

    `layer_scales` says where the scale of each layer comes from. Nothing in the file is passed over: what is no plain
    LoRA for a Wan transformer (DoRA, LoHa, layers of other models) is refused by name with a `CheckpointError`.
    """
    file = _lora_file(Path(path))
    content, metadata = open_tensors(file)
    if not is_lora(content):
        raise CheckpointError(f"{file} is not a LoRA: expected {LORA_KEY} or names with lora_A and lora_B")
    tensors = content.get(LORA_KEY, content)
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{file}: {LORA_KEY} holds a {type(tensors).__name__}; expected tensors by name")
    tensors = {str(name): value for name, value in tensors.items()}
    beside = {key: value for key, value in content.items() if key not in (LORA_KEY, CRITIC_KEY)}
    facts = {**metadata, **{k: v for k, v in {**beside, **tensors}.items() if not isinstance(v, Tensor)}}
    return lora_of({k: v for k, v in tensors.items() if isinstance(v, Tensor)}, file, facts, LORA_KEY in content)


def lora_of(tensors: Mapping[str, Tensor], file: Path, facts: Mapping[str, Any], longlive: bool = False) -> Lora:
    """The LoRA in a state dict. file: for messages, and where peft's settings lie. facts: as for `layer_scales`."""
    parts: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, str] = {}
    differences: dict[str, Tensor] = {}
    unknown = []
    for raw, tensor in tensors.items():
        if method := other_method(raw):
            raise CheckpointError(f"{file} is {method} ({raw}), which is not supported; expected a plain LoRA")
        key = parse_key(raw)
        if key is None or not (tensor.is_floating_point() or key.part == "alpha"):
            unknown.append(raw)
            continue
        held = differences if key.part in ("weight", "bias") else parts.setdefault(key.target, {})
        name = key.target if held is differences else key.part
        if name in held:
            raise CheckpointError(f"{file}: found {name} of {key.target} twice, once as {raw}; expected one")
        held[name] = tensor
        plain[key.target] = key.plain
    if unknown:
        raise CheckpointError(
            f"{file}: found {len(unknown)} names that no LoRA for Wan has: {shorten(unknown)}; expected pairs lora_A, "
            f"lora_B (or lora_down, lora_up) of Wan's layers"
        )
    _check_pairs(parts, differences, file)
    factored = {target: held for target, held in parts.items() if "down" in held}
    kohya = any("lora_down" in raw or "lora.down" in raw for raw in tensors)
    scales = layer_scales(
        file,
        {plain[target]: held["down"].shape[0] for target, held in factored.items()},
        {plain[target]: float(held["alpha"]) for target, held in factored.items() if "alpha" in held},
        facts,
        kohya,
    )
    layers = {t: Factors(held["down"], held["up"], scales[plain[t]]) for t, held in factored.items()}
    for target, held in factored.items():
        if "up bias" in held:
            differences[f"{target}.bias"] = layers[target].scale * held["up bias"].float()
    return Lora(file, layers, differences, "LongLive" if longlive else "kohya" if kohya else "peft")


def _check_pairs(parts: Mapping[str, Mapping[str, Tensor]], differences: Mapping[str, Tensor], file: Path) -> None:
    pairs = sum({"down", "up"} <= held.keys() for held in parts.values())
    wrong = []
    for target, held in parts.items():
        down, up, alpha = held.get("down"), held.get("up"), held.get("alpha")
        if down is None or up is None or down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or not len(down):
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in held.items())
            if f"{target}.weight" not in differences or down is not None or up is not None:
                wrong.append(f"{target} ({shapes})")
        elif f"{target}.weight" in differences or ("up bias" in held and f"{target}.bias" in differences):
            wrong.append(f"{target} (factors and a whole difference)")
        if alpha is not None and alpha.numel() != 1:
            wrong.append(f"{target} (alpha {list(alpha.shape)})")
    factors = sum(part in ("down", "up") for held in parts.values() for part in held)
    if wrong or not (pairs or differences):
        raise CheckpointError(
            f"{file}: expected pairs lora_A, lora_B of one rank for Wan's layers; found {factors} factors for "
            f"{len(parts)} layers, wrong: {shorten(wrong) or 'none'}"
        )


def _lora_file(path: Path) -> Path:
    """The weight file of a LoRA: the path itself, or the one in a folder."""
    if not path.is_dir():
        return path
    usual = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if usual is None and len(files) != 1:
        found = shorten(file.name for file in files) or "none"
        raise CheckpointError(f"{path}: found {found}; expected one LoRA file, {FOLDER_FILES[0]} for example")
    return usual or files[0]


def _range(values: Iterable[float]) -> float | str | None:
    several = sorted({round(float(value), 6) for value in values})
    if not several:
        return None
    plain = [int(value) if value.is_integer() else value for value in several]
    return plain[0] if len(plain) == 1 else f"{plain[0]:g} to {plain[-1]:g}"
