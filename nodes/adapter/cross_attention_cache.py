"""Host 1: what a stock WanModel makes anew at each call though nothing has changed, made once per rollout.

That is a prompt's embedded text and every layer's keys and values of it, at 512 text tokens a good part of a block's
work; and the position tables, which core makes for a clip's beginning and the memory does without.

A prompt is known by the tensor itself: core hands on what a conditioning holds as it is, if it is alone and already as
the model wants it. Whatever changes it on the way (a wrapper, a patch) hands on another tensor, and that one is worked
out as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .method_patch import standing_in

KEPT = 4  # prompts, as the engine keeps
TEXT = "c_crossattn"
CROSS_ATTENTION = "WanT2VCrossAttention"


class CrossAttentionCaches:
    """Prompts of one rollout and what was made of them. For as long as the weights stay the same."""

    def __init__(self) -> None:
        self.conds: list[tuple[Any, Any]] = []
        self.embedded: list[tuple[Tensor, Tensor]] = []
        self.layers: dict[int, list[tuple[Tensor, tuple[Tensor, Tensor]]]] = {}
        self.tables: dict[tuple, Tensor] = {}

    def prepared(self, conds: list[dict[str, Any]], x: Tensor, dtype: torch.dtype) -> list[dict[str, Any]]:
        """The same conditioning for latents x, whose text comes through core as one tensor in the model's `dtype`.

        Of several entries, and of weights that a hook changes with the steps, none is known: these stay as they are.
        """
        (cond, *others) = conds
        if others or cond.get("hooks") is not None or TEXT not in cond["model_conds"]:
            return conds
        text = cond["model_conds"][TEXT]
        known = find(self.conds, text)
        if known is None:
            known = alone(text.process_cond(batch_size=x.shape[0], device=x.device), x.device, dtype)
            self.conds = [(text, known), *self.conds][:KEPT]
        return [{**cond, "model_conds": {**cond["model_conds"], TEXT: known}}]

    def knows(self, text: Tensor) -> bool:
        return any(known.cond is text for _, known in self.conds)


def find(kept: list[tuple[Any, Any]], key: Any) -> Any:
    """What is kept for this very object, or None."""
    return next((value for known, value in kept if known is key), None)


def alone(cond: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A cond of core's kind, where and as the model wants it, handed on uncopied where no other is beside it."""

    class Alone(type(cond)):
        def concat(self, others: list[Any]) -> Tensor:
            return super().concat(others) if others else self.cond

    return Alone(cond.cond.to(device, dtype))


@torch.compiler.disable
def _embedding_forward(self: Any, text: Tensor) -> Tensor:
    """Stands in for the forward of WanModel.text_embedding."""
    contexts: CrossAttentionCaches = self.salt_contexts
    made = find(contexts.embedded, text)
    if made is None:
        made = type(self).forward(self, text)
        if contexts.knows(text):
            contexts.embedded = [(text, made), *contexts.embedded][:KEPT]
    return made


@torch.compiler.disable
def _cross_attention_forward(self: Any, x: Tensor, context: Tensor, transformer_options: dict = {}, **_: Any) -> Tensor:  # noqa: B006
    """Stands in for WanT2VCrossAttention.forward."""
    from comfy.ldm.wan.model import optimized_attention

    layer, contexts = self.salt_contexts
    kept = contexts.layers.get(layer, [])
    pair = find(kept, context)
    if pair is None:
        pair = self.norm_k(self.k(context)), self.v(context)
        if any(made is context for _, made in contexts.embedded):
            contexts.layers[layer] = [(context, pair), *kept][:KEPT]
    q = self.norm_q(self.q(x))
    return self.o(optimized_attention(q, *pair, heads=self.num_heads, transformer_options=transformer_options))


@torch.compiler.disable
def _rope_encode(self: Any, *size: int, transformer_options: dict = {}, **how: Any) -> Tensor:  # noqa: B006
    """Stands in for WanModel.rope_encode: the same table for the same size, unless options scale or shift it."""
    make, contexts = type(self).rope_encode, self.salt_contexts
    if transformer_options.get("rope_options") is not None:
        return make(self, *size, transformer_options=transformer_options, **how)
    key = (*size, *sorted((name, str(value)) for name, value in how.items()))
    if key not in contexts.tables:
        contexts.tables[key] = make(self, *size, **how)
    return contexts.tables[key]


@contextmanager
def keeping(wan: Any, contexts: CrossAttentionCaches) -> Iterator[None]:
    """While open, `wan` (a WanModel) takes from `contexts` what it has made of a prompt before.

    Cross-attention that is not core's own, or that another node has patched, works as ever.
    """
    layers = [
        (layer, block.cross_attn)
        for layer, block in enumerate(wan.blocks)
        if type(block.cross_attn).__name__ == CROSS_ATTENTION and "forward" not in block.cross_attn.__dict__
    ]
    with ExitStack() as stack:
        if "forward" not in wan.text_embedding.__dict__:
            stack.enter_context(standing_in([wan.text_embedding], _embedding_forward, "salt_contexts", [contexts]))
        told = [(layer, contexts) for layer, _ in layers]
        modules = [module for _, module in layers]
        stack.enter_context(standing_in(modules, _cross_attention_forward, "salt_contexts", told))
        if "rope_encode" not in wan.__dict__:
            stack.enter_context(standing_in([wan], _rope_encode, "salt_contexts", [contexts], "rope_encode"))
        yield
