"""Mixtures of prompts: weights among several, and blends from one prompt to the next. Pure prompts stay exact."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..model_input import Condition
from .controls import BlendMethod, WeightedPrompt
from .live_model import LiveModel

MAX_DEPTH = 8  # blends that begin before the one before them has ended
MAX_TEXTS = 64  # whose embeddings are kept
MAX_MIXTURES = 8
PARALLEL = 0.9995  # cosine above which slerp is linear
Value = TypeVar("Value")


@dataclass(frozen=True)
class PromptMix:
    """Texts or further mixtures with weights that sum to 1; a single part is the pure prompt."""

    parts: tuple[tuple[PromptMix | str, float], ...]
    method: BlendMethod = "linear"

    @classmethod
    def weighted(cls, prompts: Sequence[WeightedPrompt]) -> PromptMix:
        total = sum(p.weight for p in prompts)
        return cls(tuple((p.text, p.weight / total) for p in prompts))

    def toward(self, target: PromptMix, share: float, method: BlendMethod) -> PromptMix:
        """Between this and `target`, of which there is `share`; exactly one of them for the shares 0 and 1.

        Raises InputError for a blend that begins within another one too often.
        """
        if share in (0.0, 1.0):
            return target if share else self
        mixed = PromptMix(((self, 1.0 - share), (target, share)), method)
        if mixed.depth > MAX_DEPTH:
            raise InputError("blend", f"found {MAX_DEPTH} blends within one another, expected the earlier ones to end")
        return mixed

    def prefixed(self, prefix: str) -> PromptMix:
        """The same mixture with `prefix` before every text."""
        if not prefix:
            return self
        parts = ((p.prefixed(prefix) if isinstance(p, PromptMix) else prefix + p, share) for p, share in self.parts)
        return PromptMix(tuple(parts), self.method)

    @property
    def depth(self) -> int:
        return 1 + max((p.depth for p, _ in self.parts if isinstance(p, PromptMix)), default=0)

    def texts(self) -> dict[str, float]:
        """The share of every text."""
        shares: dict[str, float] = {}
        for part, weight in self.parts:
            inner = part.texts() if isinstance(part, PromptMix) else {part: 1.0}
            for text, share in inner.items():
                shares[text] = shares.get(text, 0.0) + weight * share
        return shares


class Latest(Generic[Value]):
    """The values of the keys used last, `size` at most."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def has(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self.size:
            self._values.popitem(last=False)
        return self._values[key]


class Conditionings(Generic[Condition]):
    """Conditionings of prompts: the same object for the same prompt, so that a model recognises it."""

    def __init__(self, live_model: LiveModel[Condition]) -> None:
        self.live_model = live_model
        self._texts: Latest[Condition] = Latest(MAX_TEXTS)
        self._mixtures: Latest[Condition] = Latest(MAX_MIXTURES)

    def has(self, text: str) -> bool:
        """Whether a text is encoded; any thread may ask."""
        return self._texts.has(text)

    def add(self, text: str, conditioning: Condition) -> None:
        """Of a text that was encoded elsewhere."""
        self._texts.get(text, lambda: conditioning)

    def of(self, mix: PromptMix | str) -> Condition:
        if isinstance(mix, str):
            return self._texts.get(mix, lambda: self.live_model.encode(mix))
        if len(mix.parts) == 1:
            return self.of(mix.parts[0][0])
        return self._mixtures.get(mix, lambda: self._mixed(mix))

    def _mixed(self, mix: PromptMix) -> Condition:
        return self.live_model.mix([(self.of(part), weight) for part, weight in mix.parts], mix.method)


def mix_tensors(parts: Sequence[tuple[Tensor, float]], method: BlendMethod) -> Tensor:
    """Embeddings [..., D] of one shape as one, computed in float32. A single part is returned as it is.

    linear: the weighted sum. slerp: along the arc between vectors of D values, their lengths linearly; parts are taken
    in one after another. Where a vector is zero, as the padding of a shorter prompt is, it is linear.
    """
    mixed, total = parts[0]
    for embedding, weight in parts[1:]:
        total += weight
        share = weight / total
        mixed = slerp(mixed, embedding, share) if method == "slerp" else _linear(mixed, embedding, share)
    return mixed


def _linear(a: Tensor, b: Tensor, share: float) -> Tensor:
    return torch.lerp(a.float(), b.float(), share).to(a.dtype)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation along the last axis, from `a` to `b`."""
    x, y = a.float(), b.float()
    lengths = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
    cosine = (x * y).sum(-1, keepdim=True) / (lengths[0] * lengths[1]).clamp_min(1e-12)
    angle = cosine.clamp(-PARALLEL, PARALLEL).acos()
    directions = x / lengths[0].clamp_min(1e-12), y / lengths[1].clamp_min(1e-12)
    arc = ((1 - share) * angle).sin() * directions[0] + (share * angle).sin() * directions[1]
    curved = arc / angle.sin() * torch.lerp(*lengths, share)
    straight = (lengths[0] * lengths[1] == 0) | (cosine.abs() >= PARALLEL)
    return torch.where(straight, torch.lerp(x, y, share), curved).to(a.dtype)
