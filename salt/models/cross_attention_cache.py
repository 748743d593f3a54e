"""Caches of what a model computes from its prompts: embedded tokens, and cross-attention keys and values per layer.

Imports no diffusers, so that hosts with a model of their own can use it at no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..conditioning import Conditioning

MAX_PROMPTS = 4
KeysAndValues = list[tuple[Tensor, Tensor]]
Key = TypeVar("Key")
Value = TypeVar("Value")


class LatestByIdentity(Generic[Key, Value]):
    """Values of the latest few keys. A key is recognised as the very object, which is kept alive."""

    def __init__(self, size: int = MAX_PROMPTS) -> None:
        self.size = size
        self._entries: list[tuple[Key, Value]] = []

    def get(self, key: Key) -> Value | None:
        return next((value for known, value in self._entries if known is key), None)

    def add(self, key: Key, value: Value) -> None:
        """Add a new key; the oldest beyond `size` is dropped."""
        self._entries = [(key, value), *self._entries][: self.size]

    def values(self) -> list[Value]:
        """Latest first."""
        return [value for _, value in self._entries]


@dataclass
class CrossAttentionCache:
    """What cross-attention reads of one prompt: embedded text and image tokens [B, N, dim], empty until filled.

    keep: keys and values of each layer are computed once and kept, for as long as this object is passed in.
    """

    text: Tensor = field(default_factory=lambda: torch.empty(0))
    image: Tensor | None = None
    keep: bool = False
    _layers: dict[int, KeysAndValues] = field(default_factory=dict)

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
        """A copy with tensors of its own."""
        layers = {i: [(k.clone(), v.clone()) for k, v in parts] for i, parts in self._layers.items()}
        return CrossAttentionCache(
            self.text.clone(), None if self.image is None else self.image.clone(), self.keep, layers
        )

    def keys_and_values(self, layer: int, compute: Callable[[], KeysAndValues]) -> KeysAndValues:
        """Keys and values of one layer, [B, N, heads, head_dim] each; `compute` is called the first time."""
        if layer not in self._layers:
            self._layers[layer] = compute()
        return self._layers[layer]


class CrossAttentionCaches:
    """The caches of the latest prompts of one model. Valid while its weights stay the same."""

    def __init__(self, size: int = MAX_PROMPTS) -> None:
        self._caches: LatestByIdentity[Conditioning, CrossAttentionCache] = LatestByIdentity(size)

    def of(self, conditioning: Conditioning) -> CrossAttentionCache | None:
        """The cache of this very object, or a new one to be filled; None while gradient is on, as it flows through."""
        if torch.is_grad_enabled():
            return None
        cache = self._caches.get(conditioning)
        if cache is None:
            cache = CrossAttentionCache(keep=True)
            self._caches.add(conditioning, cache)
        return cache
