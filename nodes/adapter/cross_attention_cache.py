"""Caches of what a stock WanModel would recompute at each call from the same inputs, one set per rollout.

That is a prompt's embedded text and every layer's keys and values of it, at 512 text tokens a good part of a block's
work; and the position tables, which ComfyUI computes for the start of a clip and which the memory does not use.

A prompt is recognised by the tensor itself: ComfyUI passes on the tensor of a conditioning as it is, if it is alone in
the batch and already in the model's dtype. Whatever changes it on the way (a wrapper, a patch) passes on another
tensor, and that one is computed as usual.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ...salt.models.cross_attention_cache import LatestByIdentity
from .method_patch import WanAttention, patched_method, replaced_method

if TYPE_CHECKING:
    from comfy.conds import CONDRegular
    from comfy.ldm.wan.model import WanModel

TEXT = "c_crossattn"
CROSS_ATTENTION = "WanT2VCrossAttention"


class PromptCaches:
    """The latest prompts of one rollout, with their embedded text, keys and values. Valid while the weights stay.

    conds: by the cond that ComfyUI has processed, the one whose tensor reaches the model as it is. embedded: tokens
    [B, N, dim], by the text. layers: keys and values of every layer, by the embedded text. tables: position tables.
    """

    def __init__(self) -> None:
        self.conds: LatestByIdentity[CONDRegular, CONDRegular] = LatestByIdentity()
        self.embedded: LatestByIdentity[Tensor, Tensor] = LatestByIdentity()
        self.layers: defaultdict[int, LatestByIdentity[Tensor, tuple[Tensor, Tensor]]] = defaultdict(LatestByIdentity)
        self.tables: dict[tuple[object, ...], Tensor] = {}

    def prepared(self, conds: list[dict[str, Any]], x: Tensor, dtype: torch.dtype) -> list[dict[str, Any]]:
        """The same conditioning for latents x, whose text passes through ComfyUI as one tensor in the model's `dtype`.

        Several entries, and weights that a hook changes with the steps, are not cached: these come back as they are.
        """
        (cond, *others) = conds
        if others or cond.get("hooks") is not None or TEXT not in cond["model_conds"]:
            return conds
        text = cond["model_conds"][TEXT]
        known = self.conds.get(text)
        if known is None:
            known = uncopied(text.process_cond(batch_size=x.shape[0], device=x.device), x.device, dtype)
            self.conds.add(text, known)
        return [{**cond, "model_conds": {**cond["model_conds"], TEXT: known}}]


def uncopied(cond: CONDRegular, device: torch.device, dtype: torch.dtype) -> CONDRegular:
    """A cond of the same class, in `dtype` on `device`, that returns its own tensor where it is alone in the batch."""

    class Uncopied(type(cond)):
        def concat(self, others: list[CONDRegular]) -> Tensor:
            return super().concat(others) if others else self.cond

    return Uncopied(cond.cond.to(device, dtype))


class TextEmbedding(Protocol):
    """WanModel.text_embedding while its forward is replaced."""

    salt_caches: PromptCaches

    def forward(self, text: Tensor) -> Tensor: ...


class CrossAttention(WanAttention, Protocol):
    """WanT2VCrossAttention, and the attribute that it has while its forward is replaced: its layer and the caches."""

    salt_caches: tuple[int, PromptCaches]


@torch.compiler.disable
def _embedding_forward(self: TextEmbedding, text: Tensor) -> Tensor:
    """Replaces the forward of WanModel.text_embedding."""
    caches = self.salt_caches
    embedded = caches.embedded.get(text)
    if embedded is None:
        embedded = type(self).forward(self, text)
        if any(cond.cond is text for cond in caches.conds.values()):
            caches.embedded.add(text, embedded)
    return embedded


@torch.compiler.disable
def _cross_attention_forward(
    self: CrossAttention, x: Tensor, context: Tensor, transformer_options: dict[str, Any] = {}, **_: object  # noqa: B006
) -> Tensor:  # fmt: skip
    """Replaces WanT2VCrossAttention.forward."""
    from comfy.ldm.wan.model import optimized_attention

    layer, caches = self.salt_caches
    pair = caches.layers[layer].get(context)
    if pair is None:
        pair = self.norm_k(self.k(context)), self.v(context)
        if any(embedded is context for embedded in caches.embedded.values()):
            caches.layers[layer].add(context, pair)
    q = self.norm_q(self.q(x))
    return self.o(optimized_attention(q, *pair, heads=self.num_heads, transformer_options=transformer_options))


class RopeEncoder(Protocol):
    """WanModel while its rope_encode is replaced."""

    salt_caches: PromptCaches

    def rope_encode(self, *size: int, **options: object) -> Tensor: ...


@torch.compiler.disable
def _rope_encode(
    self: RopeEncoder, *size: int, transformer_options: dict[str, Any] = {}, **options: object  # noqa: B006
) -> Tensor:  # fmt: skip
    """Replaces WanModel.rope_encode: the same table for the same size, unless options scale or shift it."""
    compute, caches = type(self).rope_encode, self.salt_caches
    if transformer_options.get("rope_options") is not None:
        return compute(self, *size, transformer_options=transformer_options, **options)
    key = (*size, *sorted((name, str(value)) for name, value in options.items()))
    if key not in caches.tables:
        caches.tables[key] = compute(self, *size, **options)
    return caches.tables[key]


@contextmanager
def cached_cross_attention(wan: WanModel, caches: PromptCaches) -> Iterator[None]:
    """While open, `wan` takes from `caches` what it has computed of a prompt before.

    Cross-attention that is not ComfyUI's own, or that another node has patched, runs as usual.
    """
    layers = [
        (layer, block.cross_attn)
        for layer, block in enumerate(wan.blocks)
        if type(block.cross_attn).__name__ == CROSS_ATTENTION and patched_method(block.cross_attn) is None
    ]
    with ExitStack() as stack:
        if patched_method(wan.text_embedding) is None:
            stack.enter_context(replaced_method([wan.text_embedding], _embedding_forward, "salt_caches", [caches]))
        values = [(layer, caches) for layer, _ in layers]
        modules = [module for _, module in layers]
        stack.enter_context(replaced_method(modules, _cross_attention_forward, "salt_caches", values))
        if patched_method(wan, "rope_encode") is None:
            stack.enter_context(replaced_method([wan], _rope_encode, "salt_caches", [caches], "rope_encode"))
        yield
