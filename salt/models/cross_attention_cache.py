"""What a student has made of its prompts: embedded tokens and cross-attention's keys and values, once per prompt.

Knows tensors and nothing of diffusers: what only plays a model that it is handed stays quick to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..conditioning import Conditioning


@dataclass
class CrossAttentionCache:
    """What cross-attention reads: embedded text and image tokens, [B, N, dim] each, filled by the first forward.

    keep: each layer's keys and values are worked out once and kept, for as long as this object is passed in.
    """

    text: Tensor = field(default_factory=lambda: torch.empty(0))
    image: Tensor | None = None
    keep: bool = False
    _layers: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return self.text.numel() == 0

    def tensors(self) -> list[Tensor]:
        """Embeddings, then keys and values of the layers in order; none before the first forward has filled it."""
        if self.empty:
            return []
        pairs = (pair for layer in sorted(self._layers) for pair in self._layers[layer])
        return [self.text, *([] if self.image is None else [self.image]), *(x for pair in pairs for x in pair)]

    def copied(self) -> CrossAttentionCache:
        """The same in tensors of its own."""
        layers = {i: [(k.clone(), v.clone()) for k, v in parts] for i, parts in self._layers.items()}
        return CrossAttentionCache(
            self.text.clone(), None if self.image is None else self.image.clone(), self.keep, layers
        )

    def kept(self, layer: int, make: Callable[[], list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of one layer, made at the first call."""
        if layer not in self._layers:
            self._layers[layer] = make()
        return self._layers[layer]


class CrossAttentionCaches:
    """What a model has made of the latest prompts. Not while gradients are wanted, which flow through the making."""

    def __init__(self, kept: int = 4) -> None:
        self.kept = kept
        self._known: list[tuple[Conditioning, CrossAttentionCache]] = []

    def of(self, conditioning: Conditioning) -> CrossAttentionCache | None:
        """The context kept for this very conditioning, or a new one to be filled; None where gradients are wanted."""
        if torch.is_grad_enabled():
            return None
        for known, context in self._known:
            if known is conditioning:
                return context
        context = CrossAttentionCache(keep=True)
        self._known = [(conditioning, context), *self._known][: self.kept]
        return context
