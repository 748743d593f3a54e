"""Bytes of a recipe's models: weights, gradients, optimizer states, KV memory and text encoder.

Counted on models without storage (`meta_model`), so no checkpoint has to be loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from salt.memory import MemoryGeometry, estimate_bytes
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.model_configs import meta_model
from train.config.recipe import Recipe
from train.lora_adapters import Adapter, add_lora

FP32, BF16 = 4, 2
# Wan 2.1's text encoder, UMT5-XXL, used where its folder is missing.
UMT5_CONFIG: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "d_kv": 64,
}


@dataclass(frozen=True)
class ModelWeights:
    """Parameter counts of a model: of each trainable tensor, of all, of one transformer block, of what is in no block.

    kept: bytes of the whole model as `salt.checkpoints` loads it in bfloat16 (some weights stay float32).
    """

    learn: list[int]
    total: int
    block: int
    block_learns: int
    rest: int
    kept: int


def model_weights(config: dict[str, Any], adapter: Adapter | None = None) -> ModelWeights:
    model = meta_model(config)
    if adapter:
        with torch.device("meta"):
            add_lora(model, adapter)
    precise = SaltTransformer3DModel._keep_in_fp32_modules or []
    named = list(model.named_parameters())
    total = sum(p.numel() for _, p in named)
    block = list(model.blocks[0].parameters())
    size = sum(p.numel() for p in block)
    return ModelWeights(
        learn=[p.numel() for _, p in named if p.requires_grad],
        total=total,
        block=size,
        block_learns=sum(p.numel() for p in block if p.requires_grad),
        rest=total - size * len(model.blocks),
        kept=sum(p.numel() * (FP32 if set(n.split(".")) & set(precise) else BF16) for n, p in named),
    )


def optimizer_bytes(learn: list[int], kind: str, shards: int = 1) -> int:
    """Bytes of Adam's two moments in one of `shards`.

    8bit: a byte each, a float32 scale per 256 and a table of 256 values; less than 4096 of a tensor stay in float32.
    """
    own = [ceil(n / shards) for n in learn]
    if kind != "8bit":
        return sum(2 * FP32 * n + FP32 for n in own)  # and AdamW counts its steps per tensor
    low = [n for n in own if n >= 4096 and n % 256 == 0]
    return 2 * sum(n + FP32 * (n // 256 + 256) for n in low) + 2 * FP32 * (sum(own) - sum(low)) + FP32 * len(own)


def kv_memory_bytes(recipe: Recipe, config: dict[str, Any]) -> int:
    """Bytes of a rollout's KV memory in one process; 0 for a bidirectional student."""
    r = recipe.rollout
    if r.kind == "bidirectional":
        return 0
    model = meta_model({**config, "num_layers": 1})
    g = model.memory_geometry(recipe.optimisation.micro_batch, r.height, r.width)
    heads = g.heads // (recipe.optimisation.sequence or 1)
    geometry = MemoryGeometry(config["num_layers"], heads, g.head_dim, g.height, g.width, g.batch)
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else torch.float32
    return estimate_bytes(recipe.policy, geometry, dtype, r.frames)


def text_encoder_bytes(folder: Path) -> int:
    """Bytes of UMT5 in bfloat16: the size of its files where `folder` has them."""
    files = list(folder.glob("*.safetensors"))
    if files:
        return sum(f.stat().st_size for f in files)
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**UMT5_CONFIG))
    return BF16 * sum(p.numel() for p in model.parameters())
