"""Host 1: sends the self-attention of a stock ComfyUI WanModel through a `MemoryPass`, during one model call.

The hook is the modules' own `forward` (`stand_ins`). It uses the module's q, k, v, o and norms, so everything that
ComfyUI does to weights (casts, fp8, LoRA, low VRAM, dynamic loading) happens as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...salt.memory import MemoryPass
from .method_patch import standing_in

log = logging.getLogger(__name__)


class Remembering:
    """One model call's pass over a memory: what every layer is sent through, and which layers have been."""

    def __init__(self, memory: MemoryPass) -> None:
        self.memory = memory
        self.tokens = memory.frames * memory.memory.geometry.tokens
        self.seen: list[int] = []

    def attend(self, layer: int, module: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Self-attention of `module` for normed tokens x [B, S, dim]; options: ComfyUI's transformer_options."""
        batch, tokens = x.shape[:2]
        expected = (self.memory.memory.geometry.batch, self.tokens)
        if (batch, tokens) != expected:
            raise ValueError(
                f"self-attention with a memory: found (batch, tokens) = {(batch, tokens)}, expected {expected}; "
                "combined or regional conditioning and reference latents do not go with a KV-cache memory"
            )
        if options.get("patches", {}).get("attn1_patch"):
            raise ValueError("MODEL: found an attn1 patch (MultiTalk, ...), expected none: it cannot see the memory")
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
        self.seen.append(layer)
        return module.o(self.memory.attend(layer, q, k, v, attention).flatten(2))

    def check_complete(self, layers: int) -> None:
        """Raise ValueError unless every layer went through the memory exactly once."""
        if self.seen != list(range(layers)):
            raise ValueError(
                f"MODEL: found {len(self.seen)} self-attentions in one call, expected {layers}, each layer once; nodes "
                "that skip steps or layers (EasyCache, TeaCache, skip layer guidance) and conditioning that is off at "
                "some timesteps do not go with a KV-cache memory"
            )


@torch.compiler.disable
def _remembering_forward(self: Any, x: Tensor, freqs: Tensor, transformer_options: dict = {}, **_: Any) -> Tensor:  # noqa: B006 - as core has it
    """Stands in for WanSelfAttention.forward. RoPE is the memory's business, so core's `freqs` go unused."""
    layer, passing = self.salt_memory
    return passing.attend(layer, self, x, transformer_options)


@contextmanager
def remembering(wan: Any, memory: MemoryPass) -> Iterator[Remembering]:
    """While open, self-attention of every block of `wan` (a WanModel) reads and writes through `memory`.

    Raises ValueError on a clean exit if a layer was left out or ran twice: its memory would be wrong.
    """
    passing = Remembering(memory)
    modules = [block.self_attn for block in wan.blocks]
    told = [(layer, passing) for layer in range(len(modules))]
    with standing_in(modules, _remembering_forward, "salt_memory", told):
        yield passing
    passing.check_complete(len(modules))


def warn_of_replaced_attention(wan: Any) -> None:
    """One line in the log when another node has patched self-attention: for the rollout, the memory takes its place."""
    patched = [module.forward for block in wan.blocks if "forward" in (module := block.self_attn).__dict__]
    if patched:
        owner = getattr(patched[0], "__module__", None) or type(patched[0]).__module__
        log.warning(
            "Salt: self-attention of %d layers is patched by %s; during a Salt rollout the KV-cache memory takes its "
            "place, and ComfyUI's own attention function is used",
            len(patched),
            owner,
        )
