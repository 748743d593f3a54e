"""The arithmetic of a forward, to which measured times are compared."""

from __future__ import annotations

from typing import Protocol


class WanConfig(Protocol):
    """The configuration of a Wan transformer, as far as its arithmetic depends on it."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int


def forward_flops(config: WanConfig, queries: int, keys: int, text: int) -> dict[str, float]:
    """Multiplications and additions of one forward of a Wan transformer, for linear layers and for attention.

    queries: tokens of the forward; keys: tokens that self-attention reads; text: prompt tokens, whose keys and values
    are cached. Embeddings and head, under one percent, are left out.
    """
    dim = config.num_attention_heads * config.attention_head_dim
    per_token = 4 * dim * dim + 2 * dim * dim + 2 * dim * config.ffn_dim
    return {
        "linear": 2.0 * config.num_layers * queries * per_token,
        "attention": 4.0 * config.num_layers * queries * (keys + text) * dim,
    }
