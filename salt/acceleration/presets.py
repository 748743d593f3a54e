"""Speed and room, in a person's words: what a pipeline may do to be quicker or smaller.

What each word costs in quality, and what it saves, is measured in docs/performance.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..errors import InputError
from ..memory import MemoryPolicy
from ..memory.policy import Precision

log = logging.getLogger(__name__)

Preference = Literal["exact", "fast", "fastest", "low memory"]
RECOMPILE_LIMIT = 64


@dataclass(frozen=True)
class AccelerationPreset:
    """fuse: a block's context pass and the next block's first step are one forward (the same numbers).
    compiled: transformer blocks go through `torch.compile`, and on CUDA the forward is recorded as a graph once the
    memory's window is full (the same numbers up to rounding). fp8: linear layers multiply in float8 with a scale per
    row, on GPUs that do (needs torchao). precision: of a memory whose policy does not say. tiles: decode in tiles.
    text_waits: the text encoder is on the device only while it encodes.
    """

    fuse: bool = False
    compiled: bool = False
    fp8: bool = False
    precision: Precision = "model"
    tiles: bool = False
    text_waits: bool = False

    def policy(self, policy: MemoryPolicy) -> MemoryPolicy:
        """`policy`, in this precision where it names none itself."""
        return policy.with_storage(self.precision, policy.residence) if policy.precision == "model" else policy


PREFERENCES: dict[Preference, AccelerationPreset] = {
    "exact": AccelerationPreset(),
    "fast": AccelerationPreset(fuse=True, compiled=True),
    "fastest": AccelerationPreset(fuse=True, compiled=True, fp8=True),
    "low memory": AccelerationPreset(fuse=True, precision="int8", tiles=True, text_waits=True),
}


def speed_of(preference: str) -> AccelerationPreset:
    """Raises ValueError that names the words there are."""
    if preference not in PREFERENCES:
        words = ", ".join(map(repr, PREFERENCES))
        raise InputError("prefer", f"found {preference!r}, expected one of {words}")
    return PREFERENCES[preference]


def compile_blocks(model: Any, dynamic: bool | None = None) -> None:
    """Compile a transformer's blocks: code is made once per kind of forward, not per layer.

    dynamic: whether token counts are variables in the code; None: from the second count on.
    """
    # One graph a kind of forward and piece between attentions: with and without gradient, by batch and frames.
    torch._dynamo.config.cache_size_limit = RECOMPILE_LIMIT  # torch 2.6's name of recompile_limit, an alias since
    model.compile_repeated_blocks(dynamic=dynamic)


def fp8_linears(model: nn.Module) -> None:
    """The blocks' linear layers to float8, weights with a scale per output row and activations with one per token.

    Raises ValueError without torchao, for weights that are not bfloat16, or on a device that does not multiply in
    float8.
    """

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name.startswith("blocks.")

    # Not all parameters': modulation, norms and the time embedder stay in float32.
    weights = [model.get_parameter(f"{name}.weight") for name, m in model.named_modules() if chosen(m, name)]
    if found := {str(w.dtype) for w in weights} - {"torch.bfloat16"}:
        raise InputError("prefer", f"found 'fastest' with weights in {', '.join(found)}, expected torch.bfloat16")
    device = weights[0].device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise InputError(
            "prefer", f"found 'fastest' on {device}, expected a GPU that multiplies in float8 (8.9 or newer)"
        )
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Float8DynamicActivationFloat8WeightConfig,
            PerRow,
            quantize_,
        )
    except ImportError as error:
        raise InputError("prefer", "found no torchao, expected it for 'fastest' (pip install torchao)") from error
    quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), filter_fn=chosen)
