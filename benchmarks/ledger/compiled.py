"""Bytes that one transformer block moves when `torch.compile` fuses it, by Inductor's own count.

Run on the CPU, at true width (a minute): what is fused is decided before code for a device is written, though not by
the same rules for every device. Attention and what the memory does are outside compiled code; they are left out here,
and counted by the ledger.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.ledger.cases import BLOCK, LATENT, SIZES, TEXT_TOKENS
from salt.models.attention import Attention
from salt.models.cross_attention_cache import CrossAttentionCache
from salt.models.transformer_salt import SaltTransformer3DModel


class NoAttention:
    """In place of self-attention over a memory: the queries, outside compiled code as there."""

    by_layer: ClassVar[bool] = True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        return q


@torch.no_grad()
def compiled_block_bytes(size: str = "1.3B") -> int:
    """Bytes of one block of this model for three latent frames at 832x480, without attention and memory."""
    from torch._inductor import compile_fx, metrics

    compile_fx.inductor_metrics_log.setLevel(logging.INFO)  # bytes are counted for its sake alone
    config = {"out_channels": 16, **SIZES[size], "num_layers": 1}
    with torch.device("meta"):
        student = SaltTransformer3DModel(**config)
    block = student.blocks[0].to_empty(device="cpu").to(torch.bfloat16)
    block.norm2.float()
    block.scale_shift_table = torch.nn.Parameter(torch.zeros_like(block.scale_shift_table, dtype=torch.float32))
    width = student.config.num_attention_heads * student.config.attention_head_dim
    tokens = BLOCK * LATENT[0] * LATENT[1] // 4
    x = torch.zeros(1, tokens, width, dtype=torch.bfloat16)
    temb = torch.zeros(1, BLOCK, 6, width, dtype=torch.bfloat16)
    cache = CrossAttentionCache()
    cache.text = torch.zeros(1, TEXT_TOKENS, width, dtype=torch.bfloat16)
    context: Any = NoAttention()
    block(x[:, :BLOCK], cache, temb, context)  # fills the cache of cross-attention
    metrics.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        torch.compile(block, dynamic=False)(x, cache, temb, context)
    return metrics.num_bytes_accessed
