"""Fingerprints of models: short digests that tell apart the models whose memories must not be mixed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

SAMPLES_PER_WEIGHT = 16
HEX_DIGITS = 16
ADAPTER_WEIGHT = re.compile(r"\.lora_[AB]\.([^.]+)\.")  # a parameter's name -> the adapter's


def stored_values(weight: Tensor) -> Tensor:
    """The plain tensor that a weight's numbers are stored in.

    Quantised tensor subclasses (ComfyUI's, torchao's) report another shape and dtype than they store, and some do not
    flatten; their codes tell models apart as well.
    """
    stored = weight.detach()
    for attribute in ("_qdata", "qdata"):
        if hasattr(stored, attribute):
            stored = getattr(stored, attribute)
            break
    return stored if type(stored) is Tensor else stored.as_subclass(Tensor)


def evenly_spaced(stored: Tensor) -> Tensor:
    """At most 16 evenly spaced values of a tensor, [N] in its dtype."""
    flat = stored.flatten()
    return flat[:: max(flat.numel() // SAMPLES_PER_WEIGHT, 1)][:SAMPLES_PER_WEIGHT]


def active_adapters(model: nn.Module) -> dict[str, list[float]]:
    """LoRA adapters that act beside a model's weights, by name, each with the scales that its layers have."""
    scales: dict[str, set[float]] = {}
    for layer in cast(Iterator[Any], model.modules()):
        # peft's layers, without importing peft, which takes seconds.
        if hasattr(layer, "merged_adapters") and not layer.disable_adapters and not layer.merged:
            for name in layer.active_adapters:
                if layer.scaling.get(name):  # at strength 0 it adds nothing
                    scales.setdefault(name, set()).add(float(layer.scaling[name]))
    return {name: sorted(scales[name]) for name in sorted(scales)}


def lora_names(model: nn.Module) -> list[str]:
    """LoRAs in a model: merged files (with strengths), then adapters that act or are fused, by name."""
    layers = cast(Iterator[Any], model.modules())
    fused = {name for layer in layers for name in getattr(layer, "merged_adapters", ())}
    return [*getattr(model, "merged_loras", ()), *sorted(fused | active_adapters(model).keys())]


def _effective_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters that act, by the names that they have without adapters around them."""
    active = active_adapters(model)
    for name, parameter in model.named_parameters():
        adapter = ADAPTER_WEIGHT.search(name)
        if adapter is None or adapter[1] in active:
            yield name.replace(".base_layer.", "."), parameter


def fingerprint(model: nn.Module) -> str:
    """16 hex digits that tell two models apart, then ` with LoRA NAMES` where it has any, for messages only.

    The digits depend on configuration, names and shapes, and 16 values of every parameter: on dtype casts only as far
    as bfloat16 goes, on a LoRA or fine-tune always. Raises ValueError where accelerate keeps the weights apart from the
    model (sequential offload).
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in dict(getattr(model, "config", {})).items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    samples = []
    for name, parameter in sorted(_effective_parameters(model)):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type == "meta":
            raise ValueError(
                "the model's weights are loaded layer by layer (sequential offload), but its memory needs the whole "
                "model; enable_model_cpu_offload() moves whole models"
            )
        samples.append(evenly_spaced(stored_values(parameter)).float())
    if scales := active_adapters(model):
        digest.update(json.dumps(scales).encode())
    if samples:
        digest.update(torch.cat(samples).bfloat16().view(torch.int16).cpu().numpy().tobytes())
    names = lora_names(model)
    return digest.hexdigest()[:HEX_DIGITS] + (f" with LoRA {', '.join(names)}" if names else "")
