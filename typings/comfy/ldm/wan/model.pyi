from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

class WanSelfAttention(nn.Module):
    num_heads: int
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    norm_q: nn.Module
    norm_k: nn.Module

class WanAttentionBlock(nn.Module):
    self_attn: WanSelfAttention
    cross_attn: WanSelfAttention

class WanModel(nn.Module):
    patch_size: tuple[int, int, int]
    dim: int
    in_dim: int
    out_dim: int
    ffn_dim: int
    text_dim: int
    num_heads: int
    blocks: Sequence[WanAttentionBlock]
    text_embedding: nn.Sequential
    img_emb: nn.Module | None
    def forward_orig(self, x: Tensor, t: Tensor, context: Tensor, **options: object) -> Tensor: ...
    def rope_encode(self, *size: int, **options: object) -> Tensor: ...

def optimized_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, transformer_options: dict[str, Any] = ...
) -> Tensor: ...
