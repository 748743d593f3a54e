"""Acceleration presets of the pipeline: compilation, CUDA graphs, fp8 and memory-saving settings, by name.

Their cost in quality and their savings are measured in docs/performance.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ..errors import InputError
from ..memory import MemoryPolicy
from ..memory.policy import Precision

if TYPE_CHECKING:
    from diffusers import ModelMixin

log = logging.getLogger(__name__)

Preference = Literal["exact", "fast", "fastest", "low memory", "lowest memory", "layer by layer"]
StoredWeights = Literal["bf16", "fp8", "layers"]
RECOMPILE_LIMIT = 64


@dataclass(frozen=True)
class AccelerationPreset:
    """Settings of the pipeline that trade speed, memory and rounding.

    fuse: a block's context pass and the next block's first step are one forward (same numbers). compiled: transformer
    blocks are compiled by `torch.compile`, and on CUDA the forward is recorded as a graph once the memory's window is
    full (same numbers up to rounding). fp8: linear layers multiply in float8 with a scale per row, on GPUs that can
    (needs torchao). precision: of memories whose policy has the default one. tiles: decode in tiles.
    offload_text_encoder: the text encoder is in main memory, and its blocks are on the device one after another.
    kernels: fused kernels where the device has them (same numbers up to rounding).
    weights: `bf16` as loaded; `fp8` the blocks' linear layers are stored in float8 and cast back one by one where they
    compute; `layers` the blocks are in main memory, two of them on the device at a time.
    """

    fuse: bool = False
    compiled: bool = False
    fp8: bool = False
    precision: Precision = "model"
    tiles: bool = False
    offload_text_encoder: bool = False
    kernels: bool = False
    weights: StoredWeights = "bf16"

    def policy(self, policy: MemoryPolicy) -> MemoryPolicy:
        """`policy` with this precision, unless it has one of its own."""
        return policy.with_storage(self.precision, policy.residence) if policy.precision == "model" else policy


PREFERENCES: dict[Preference, AccelerationPreset] = {
    "exact": AccelerationPreset(),
    "fast": AccelerationPreset(fuse=True, compiled=True, offload_text_encoder=True, kernels=True),
    "fastest": AccelerationPreset(fuse=True, compiled=True, fp8=True, offload_text_encoder=True, kernels=True),
    "low memory": AccelerationPreset(fuse=True, precision="int8", tiles=True, offload_text_encoder=True, kernels=True),
    "lowest memory": AccelerationPreset(
        precision="int4", tiles=True, offload_text_encoder=True, kernels=True, weights="fp8"
    ),
    "layer by layer": AccelerationPreset(
        precision="int4", tiles=True, offload_text_encoder=True, kernels=True, weights="layers"
    ),
}


def preset_of(preference: str) -> AccelerationPreset:
    """The preset of a name. Raises InputError that lists the names."""
    if preference not in PREFERENCES:
        names = ", ".join(map(repr, PREFERENCES))
        raise InputError("prefer", f"found {preference!r}, expected one of {names}")
    return PREFERENCES[preference]


def compile_blocks(model: ModelMixin, dynamic: bool | None = None) -> None:
    """Compile a transformer's blocks: code is compiled once per kind of forward, not per layer.

    dynamic: whether token counts are variables in the code; None: from the second count on.
    """
    # One graph per kind of forward (gradient, batch size, frames) and per piece of a block between attentions.
    torch._dynamo.config.cache_size_limit = RECOMPILE_LIMIT  # torch 2.6's name of recompile_limit, an alias since
    model.compile_repeated_blocks(dynamic=dynamic)


def fuse_self_attention(model: nn.Module) -> None:
    """One linear layer for q, k and v of every self-attention, in place of three.

    A layer that quantises its input then does so once; with a scale per output row, products stay the same.
    """
    from diffusers.models.transformers.transformer_wan import WanAttention

    for name, module in list(model.named_modules()):
        if name.endswith(".attn1") and isinstance(module, WanAttention):
            module.fuse_projections()
            for part in ("to_q", "to_k", "to_v"):
                delattr(module, part)


def fp8_linears(model: nn.Module) -> None:
    """Convert the blocks' linear layers to float8: weights have a scale per output row, activations one per token.

    q, k and v of self-attention are one layer from then on.

    Raises InputError without torchao, for weights that are not bfloat16, or on a device that does not multiply in
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
    fuse_self_attention(model)
    quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), filter_fn=chosen)


def store_weights(model: ModelMixin, weights: StoredWeights, device: torch.device) -> None:
    """Store the blocks' weights in float8, or in main memory, through diffusers' hooks; nothing for `bf16`.

    device: where the model computes. On CUDA the next block is copied while one computes; the device holds two. On the
    CPU all weights are in main memory already.
    Raises InputError for float8 with weights in float32, which were loaded to be exact.
    """
    if weights == "fp8":
        if model.dtype not in (torch.bfloat16, torch.float16):
            raise InputError("prefer", f"found 'lowest memory' with weights in {model.dtype}, expected bfloat16")
        model.enable_layerwise_casting(torch.float8_e4m3fn, model.dtype)
    elif weights == "layers" and device.type != "cpu":
        model.enable_group_offload(device, num_blocks_per_group=1, use_stream=device.type == "cuda")
