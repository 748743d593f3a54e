"""Attention of the student: the contexts of self-attention, and the attention processors for diffusers' modules.

An attention context computes self-attention of any layer from queries, keys and values before RoPE
[B, S, heads, head_dim]. There are three: `Bidirectional` (every token sees every token), `BlockCausal` (training: whole
clips in one forward) and `salt.memory.MemoryPass` (rollouts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, cast

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..acceleration.kernels.chosen import NO_KERNELS, Kernels
from ..memory import MemoryPass
from ..memory.fused import QKNorm
from ..parallel.heads import HeadGroup
from ..rope import Rotary, apply_rotary
from .cross_attention_cache import CrossAttentionCache, KeysAndValues

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., object])


def run_eagerly(function: Function) -> Function:
    """`torch.compiler.disable` with the function's own type."""
    return cast(Function, torch.compiler.disable(function))


def attend(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackendName | None) -> Tensor:
    """Attention of q, k, v [B, S, heads, head_dim] by one of diffusers' back ends; None: the one that is active there.

    cuDNN takes the tensors as they lie; diffusers' own call of it copies all three into another layout first.
    """
    if backend is AttentionBackendName._NATIVE_CUDNN:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return dispatch_attention_fn(q, k, v, backend=AttentionBackendName.NATIVE)
    return dispatch_attention_fn(q, k, v, backend=backend)


class AttentionContext(Protocol):
    """What self-attention may see. `layer` counts from 0; q, k, v and the result are [B, S, heads, head_dim].

    by_layer: whether it depends on `layer`. Code compiled for one layer number would serve that layer alone.
    """

    by_layer: ClassVar[bool]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor: ...


@dataclass(frozen=True)
class Bidirectional:
    """Every token sees every token: the teacher, and the bidirectional student. frames: that the tokens are of."""

    rotary: Rotary
    frames: int = 1
    by_layer: ClassVar[bool] = False

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        return attention(apply_rotary(q, self.rotary), apply_rotary(k, self.rotary), v)


@dataclass(frozen=True)
class BlockCausal:
    """Whole clips in one forward: each block sees itself and the blocks before it (CausVid's training mask).

    rotary: of the clip's F frames. blocks: latent frames per block, in order, F in all. tokens: per latent frame.
    clean_context: the input is [clean clip | noisy clip], 2F frames; a clean block sees clean blocks up to itself, a
    noisy block sees the clean blocks before it and itself (teacher forcing: what a rollout computes whose memory holds
    the clean clip). sink, window: as in the rollout's `MemoryPolicy`; window None keeps everything.
    Each block is one dense attention call, so no mask of tokens x tokens is ever built.
    """

    rotary: Rotary
    blocks: tuple[int, ...]
    tokens: int
    clean_context: bool = False
    sink: int = 0
    window: int | None = None
    by_layer: ClassVar[bool] = False

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        rotary = Rotary(*(torch.cat([t, t]) for t in self.rotary)) if self.clean_context else self.rotary
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        clip = sum(self.blocks) * self.tokens
        outputs: list[Tensor] = []
        for offset in (0, clip) if self.clean_context else (0,):
            start = 0
            for frames in self.blocks:
                block = slice(offset + start * self.tokens, offset + (start + frames) * self.tokens)
                past = self.visible_past(start, frames)
                keys = torch.cat([*(k[:, p] for p in past), k[:, block]], dim=1)
                values = torch.cat([*(v[:, p] for p in past), v[:, block]], dim=1)
                outputs.append(attention(q[:, block], keys, values))
                start += frames
        return torch.cat(outputs, dim=1)

    def visible_past(self, start: int, frames: int) -> list[slice]:
        """Token ranges of the (clean) clip that a block of `frames` starting at frame `start` sees before itself."""
        if self.window is None:
            return [slice(0, start * self.tokens)]
        sink = min(self.sink, start)
        recent = max(start - max(self.window - frames - sink, 0), sink)
        return [slice(0, sink * self.tokens), slice(recent * self.tokens, start * self.tokens)]


def _grid(context: AttentionContext) -> tuple[int, int]:
    """Latent frames of a forward's input, and tokens of each."""
    match context:
        case MemoryPass():
            return context.frames, context.geometry.tokens
        case BlockCausal():
            return sum(context.blocks) * (2 if context.clean_context else 1), context.tokens
        case Bidirectional():
            return context.frames, len(context.rotary.cos) // context.frames
    raise RuntimeError(f"attention split by heads: found {type(context).__name__}, which has no frames")


class SelfAttention:
    """diffusers attention processor of one layer's self-attention within an `attention_context`."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None
    kernels: Kernels = NO_KERNELS

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.automatic: AttentionBackendName | None = None  # the back end that `set_attention` has set
        self.head_group: HeadGroup | None = None

    def __call__(
        self, attn: WanAttention, hidden_states: Tensor, *unused: None, attention_context: AttentionContext
    ) -> Tensor:
        if attn.fused_projections:
            q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        by_kernels = self.kernels.memory is not None and self.head_group is None
        if by_kernels and isinstance(attention_context, MemoryPass):
            out = self._attend_by_kernels(attention_context, attn, q, k, v)
            return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(hidden_states)))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        if attention_context.by_layer or self.head_group is not None:
            out = self._attend_by_layer(attention_context, q, k, v)
        else:
            out = attention_context.attend(0, q, k, v, self._dispatch)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(hidden_states)))

    @run_eagerly
    def _attend_by_layer(self, attention_context: AttentionContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Outside compiled code, which then is the same for every layer."""
        if self.head_group is None:
            return attention_context.attend(self.layer, q, k, v, self._dispatch)
        frames, tokens = _grid(attention_context)
        q, k, v = self.head_group.own_heads(torch.stack([q, k, v]), frames, tokens)
        out = attention_context.attend(self.layer, q, k, v, self._dispatch)
        return self.head_group.all_heads(out, frames, tokens)

    @run_eagerly
    def _attend_by_kernels(self, memory: MemoryPass, attn: WanAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same with fused kernels, where they take this memory and these; norms are theirs too."""
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        works, eps = self.kernels.memory, attn.norm_q.eps
        if works is not None and eps is not None:
            norm = QKNorm(attn.norm_q.weight, attn.norm_k.weight, eps)
            if memory.takes_kernels(q, k, v, norm) and works(memory.policy):
                return memory.attend(self.layer, q, k, v, self._dispatch, norm)
        q, k = (norm(x.flatten(2)).unflatten(2, (attn.heads, -1)) for norm, x in ((attn.norm_q, q), (attn.norm_k, k)))
        return memory.attend(self.layer, q, k, v, self._dispatch)

    def _dispatch(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self._attention_backend)


class CrossAttention:
    """diffusers attention processor of one layer's cross-attention to text and image tokens (Wan I2V)."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.automatic: AttentionBackendName | None = None  # the back end that `set_attention` has set

    def __call__(self, attn: WanAttention, hidden_states: Tensor, cache: CrossAttentionCache, *unused: None) -> Tensor:
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        parts = self._cached_keys_and_values(attn, cache) if cache.keep else self._keys_and_values(attn, cache)
        out = self._dispatch(q, *parts[0]).flatten(2, 3)
        for k, v in parts[1:]:
            out = out + self._dispatch(q, k, v).flatten(2, 3)
        return attn.to_out[1](attn.to_out[0](out.type_as(hidden_states)))

    @run_eagerly
    def _cached_keys_and_values(self, attn: WanAttention, cache: CrossAttentionCache) -> KeysAndValues:
        return cache.keys_and_values(self.layer, lambda: self._keys_and_values(attn, cache))

    def _keys_and_values(self, attn: WanAttention, cache: CrossAttentionCache) -> KeysAndValues:
        """Of the text, then of the image where there is one; each [B, N, heads, head_dim]."""
        text = cache.text
        if attn.fused_projections:
            k, v = attn.to_kv(text).chunk(2, dim=-1)
        else:
            k, v = attn.to_k(text), attn.to_v(text)
        parts = [(attn.norm_k(k), v)]
        if cache.image is not None:
            if attn.fused_projections:
                k, v = attn.to_added_kv(cache.image).chunk(2, dim=-1)
            else:
                assert attn.add_k_proj is not None and attn.add_v_proj is not None
                k, v = attn.add_k_proj(cache.image), attn.add_v_proj(cache.image)
            parts.append((attn.norm_added_k(k), v))
        return [(k.unflatten(2, (attn.heads, -1)), v.unflatten(2, (attn.heads, -1))) for k, v in parts]

    def _dispatch(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self._attention_backend)
