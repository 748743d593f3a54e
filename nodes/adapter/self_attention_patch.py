"""Sends the self-attention of a stock ComfyUI WanModel through a `MemoryPass`, during one model call.

What is replaced is the modules' own `forward` (`method_patch`). The replacement uses the module's q, k, v, o and norms,
so everything that ComfyUI does to weights (casts, fp8, LoRA, low VRAM, dynamic loading) still happens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.memory import MemoryPass
from .method_patch import WanAttention, patched_method, replaced_method

if TYPE_CHECKING:
    from comfy.ldm.wan.model import WanModel

log = logging.getLogger(__name__)


class SelfAttention(WanAttention, Protocol):
    """WanSelfAttention, and the attribute that it has while its forward is replaced: its layer and the current call."""

    salt_memory: tuple[int, MemoryAttention]


class MemoryAttention:
    """Self-attention of one model call over a memory. `layers_seen`: the layers that have run, in order."""

    def __init__(self, memory: MemoryPass) -> None:
        self.memory = memory
        self.tokens = memory.frames * memory.geometry.tokens
        self.layers_seen: list[int] = []

    def attend(self, layer: int, module: SelfAttention, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Self-attention of `module` for normed tokens x [B, S, dim]; options: ComfyUI's transformer_options."""
        batch, tokens = x.shape[:2]
        expected = (self.memory.geometry.batch, self.tokens)
        if (batch, tokens) != expected:
            raise ValueError(
                f"self-attention with a memory: found (batch, tokens) = {(batch, tokens)}, expected {expected}; "
                "combined or regional conditioning and reference latents are not supported with a KV-cache memory"
            )
        if options.get("patches", {}).get("attn1_patch"):  # of a hook: those of a MODEL are refused before
            raise InputError("positive", "has a hook that patches self-attention (attn1), which would miss the memory")
        heads = module.num_heads

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # Looked up at every call: packs replace it there, and it honours `optimized_attention_override`.
            from comfy.ldm.wan.model import optimized_attention

            out = optimized_attention(
                q.flatten(2), k.flatten(2), v.flatten(2), heads=heads, transformer_options=options
            )
            return out.unflatten(2, (heads, -1))

        q, k, v = (
            y.unflatten(2, (heads, -1)) for y in (module.norm_q(module.q(x)), module.norm_k(module.k(x)), module.v(x))
        )
        self.layers_seen.append(layer)
        return module.o(self.memory.attend(layer, q, k, v, attention).flatten(2))

    def check_complete(self, layers: int) -> None:
        """Raise InputError unless every layer went through the memory exactly once: else what it holds is wrong."""
        if self.layers_seen != list(range(layers)):
            raise InputError(
                "model",
                f"found {len(self.layers_seen)} self-attentions in one call, expected {layers}, each layer once; nodes "
                "that skip steps or layers (EasyCache, TeaCache, skip layer guidance) and conditioning that is off at "
                "some timesteps are not supported with a KV-cache memory",
            )


@torch.compiler.disable
def _memory_forward(
    self: SelfAttention, x: Tensor, freqs: Tensor, transformer_options: dict[str, Any] = {}, **_: object  # noqa: B006
) -> Tensor:  # fmt: skip
    """Replaces WanSelfAttention.forward, with its signature. The memory applies RoPE, so `freqs` is not used."""
    layer, attention = self.salt_memory
    return attention.attend(layer, self, x, transformer_options)


@contextmanager
def memory_attention(wan: WanModel, memory: MemoryPass) -> Iterator[MemoryAttention]:
    """While open, self-attention of every block of `wan` reads and writes through `memory`."""
    attention = MemoryAttention(memory)
    modules = [block.self_attn for block in wan.blocks]
    values = [(layer, attention) for layer in range(len(modules))]
    with replaced_method(modules, _memory_forward, "salt_memory", values):
        yield attention


def warn_of_replaced_attention(wan: WanModel) -> None:
    """Log one line if another node has patched self-attention: during a rollout the memory replaces that patch."""
    patched = [method for block in wan.blocks if (method := patched_method(block.self_attn)) is not None]
    if patched:
        owner = getattr(patched[0], "__module__", None) or type(patched[0]).__module__
        log.warning(
            "Salt: self-attention of %d layers is patched by %s; during a Salt rollout the KV-cache memory takes its "
            "place, and ComfyUI's own attention function is used",
            len(patched),
            owner,
        )
