"""Fused projections in a weight file: one layer that computes queries, keys and values together."""

from __future__ import annotations

import re

import torch

# End of a fused layer's name -> ends of the layers that it is made of, in order along the output channels.
FUSED = {
    "self_attn.qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "self_attn.to_qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attn1.to_qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv": ("cross_attn.k", "cross_attn.v"),
    "cross_attn.to_kv": ("cross_attn.k", "cross_attn.v"),
    "attn2.to_kv": ("attn2.to_k", "attn2.to_v"),
    "attn2.to_added_kv": ("attn2.add_k_proj", "attn2.add_v_proj"),
}
_NAME = re.compile(rf"(?P<front>(?:.*\.)?)(?P<layer>{'|'.join(map(re.escape, FUSED))})(?P<end>\.[a-z_]+)")


def is_fused(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def split_fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights with fused layers in parts, which are views; a scale for a whole layer is that of every part.

    Weights that a file also has by themselves stay as they are, and the fused name too, which no model has.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        parts = FUSED[match["layer"]] if match else ()
        names = [f"{match['front']}{part}{match['end']}" for part in parts] if match else []
        if not names or any(each in tensors for each in names):
            found[name] = tensor
        elif tensor.numel() == 1:
            found |= dict.fromkeys(names, tensor)
        else:
            found |= dict(zip(names, tensor.chunk(len(names)), strict=False))
    return found
