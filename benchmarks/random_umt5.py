"""Wan's text encoder, UMT5 of true size, with random weights and no tokenizer file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import UMT5Config, UMT5EncoderModel

UMT5 = dict(
    vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False,
)  # fmt: skip


class Tokens:
    """A tokenizer in place of UMT5's: every prompt is padded to the longest."""

    def __call__(self, prompts: list[str], *, max_length: int, **unused: object) -> SimpleNamespace:
        shape = (len(prompts), max_length)
        ids = torch.zeros(shape, dtype=torch.int64)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones(shape, dtype=torch.int64))


@torch.no_grad()
def random_umt5(device: torch.device, config: dict[str, Any] = UMT5) -> UMT5EncoderModel:
    """UMT5 in bfloat16 on `device`, made there."""
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**config)).bfloat16()
    model = model.to_empty(device=device).eval()
    for weight in model.parameters():
        weight.normal_(0.0, 0.02)
    return model
