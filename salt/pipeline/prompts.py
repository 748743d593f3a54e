"""Prompts of a call as embeddings: one batch through the text encoder, then one row per clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..models.text_encoder import TextEncoder
from .inputs import PipelineInputs, prompt_list
from .start_image import repeat_rows


@dataclass(frozen=True)
class PromptEmbeddings:
    """prompt: [B, L, D], one row per clip. negative: the same, None without guidance. changes: [N, L, D], one row per
    prompt change."""

    prompt: Tensor
    negative: Tensor | None
    changes: Tensor


def encode_prompts(
    inputs: PipelineInputs,
    encoder: TextEncoder | None,
    device: torch.device,
    dtype: torch.dtype | None,
    changes: Sequence[str] = (),
) -> PromptEmbeddings:
    """Embeddings of every text of a call, on `device` and in `dtype` (None: as the encoder returns them).

    All texts are encoded at once, so that an offloaded encoder is moved once; `prompt_embeds` and
    `negative_prompt_embeds` replace their texts. Raises InputError for a text without an encoder and for numbers of
    prompts that do not match; and what the encoder raises.
    """
    count, repeats = inputs.prompt_count(), inputs.num_videos_per_prompt
    prompts = [] if inputs.prompt_embeds is not None else prompt_list(inputs.prompt)
    negatives: list[str] = []
    if inputs.guided and inputs.negative_prompt_embeds is None:
        negatives = prompt_list("" if inputs.negative_prompt is None else inputs.negative_prompt)
    texts = [*prompts, *changes, *negatives]
    if texts and encoder is None:
        raise InputError("prompt", "needs a text encoder, and this pipeline has none; use `prompt_embeds`")
    encoded = torch.empty(0) if encoder is None or not texts else encoder.encode(texts)
    prompt, changed, negative = encoded.to(device, dtype).split([len(prompts), len(changes), len(negatives)])
    if inputs.prompt_embeds is not None:
        prompt = _embeddings(inputs.prompt_embeds, "prompt_embeds").to(device, dtype)
    if inputs.negative_prompt_embeds is not None:
        negative = _embeddings(inputs.negative_prompt_embeds, "negative_prompt_embeds").to(device, dtype)
    return PromptEmbeddings(
        repeat_rows(prompt, "prompt", count * repeats, repeats),
        repeat_rows(negative, "negative_prompt", count * repeats, repeats) if inputs.guided else None,
        changed,
    )


def _embeddings(embeddings: Tensor, field: str) -> Tensor:
    if embeddings.ndim != 3:
        raise InputError(field, f"found shape {list(embeddings.shape)}, expected [prompts, length, width]")
    return embeddings
