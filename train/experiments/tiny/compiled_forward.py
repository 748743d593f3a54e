"""A transformer's forward over whole clips that compiles to one graph, for training on a CPU.

Computes what `SaltTransformer3DModel.forward` computes, from the same weights. It is faster there by explicit attention
under one mask (the backward of torch's fused CPU kernel takes up to five times as long with few keys), and by rotating
the two halves of a head instead of neighbouring pairs, which vectorises. Permuting the channels of queries and keys
alike changes no product of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from salt.memory import MemoryPolicy
from salt.models.attention import AttentionContext, BlockCausal
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.rope import Rotary, rotary_table, wide


def halves(x: Tensor, heads: int) -> Tensor:
    """Rows [heads * head_dim, ...], even channels of each head before its odd ones."""
    return x.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def rotate_halves(x_BSHD: Tensor, rotary: Rotary) -> Tensor:
    """`apply_rotary` for heads whose even channels come before the odd ones."""
    even, odd = wide(x_BSHD).chunk(2, dim=-1)
    cos, sin = rotary.cos[None, :, None], rotary.sin[None, :, None]
    return torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1).to(x_BSHD.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias_SS: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v; q, k, v [B, S, heads, head_dim], the result [B, S, dim]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = wide((q * q.shape[-1] ** -0.5) @ k.mT)
    weights = torch.softmax(scores if bias_SS is None else scores + bias_SS, dim=-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def mask_of(context: BlockCausal) -> Tensor:
    """Attention bias [S, S] of a `BlockCausal` context: 0 where a token attends, -inf elsewhere."""
    frames = sum(context.blocks)
    copies = 2 if context.clean_context else 1
    attends = torch.zeros(copies * frames, copies * frames, dtype=torch.bool)
    for copy in range(copies):
        start = 0
        for length in context.blocks:
            rows = slice(copy * frames + start, copy * frames + start + length)
            attends[rows, rows] = True
            for past in context.visible_past(start, length):
                attends[rows, past.start // context.tokens : past.stop // context.tokens] = True
            start += length
    by_token = attends.repeat_interleave(context.tokens, 0).repeat_interleave(context.tokens, 1)
    return torch.zeros(by_token.shape).masked_fill_(~by_token, -torch.inf)


def _self_attention(attn: WanAttention, x: Tensor, rotary: Rotary, bias: Tensor | None) -> Tensor:
    def rotated(linear: nn.Linear, norm: nn.RMSNorm) -> Tensor:
        projected = F.linear(x, halves(linear.weight, attn.heads), halves(linear.bias, attn.heads))
        normed = F.rms_norm(wide(projected), projected.shape[-1:], halves(norm.weight, attn.heads), norm.eps)
        return rotate_halves(normed.to(projected.dtype).unflatten(2, (attn.heads, -1)), rotary)

    v = attn.to_v(x).unflatten(2, (attn.heads, -1))
    return attn.to_out[0](attend(rotated(attn.to_q, attn.norm_q), rotated(attn.to_k, attn.norm_k), v, bias))


def _cross_attention(attn: WanAttention, x: Tensor, text: Tensor) -> Tensor:
    def normed(linear: nn.Linear, norm: nn.RMSNorm, source: Tensor) -> Tensor:
        projected = linear(source)
        return F.rms_norm(wide(projected), projected.shape[-1:], norm.weight, norm.eps).to(projected.dtype)

    q, k, v = normed(attn.to_q, attn.norm_q, x), normed(attn.to_k, attn.norm_k, text), attn.to_v(text)
    q, k, v = (y.unflatten(2, (attn.heads, -1)) for y in (q, k, v))
    return attn.to_out[0](attend(q, k, v, None))


def hidden(
    model: SaltTransformer3DModel, x: Tensor, t_BF: Tensor, text: Tensor, rotary: Rotary, bias: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Tokens [B, S, dim] after every block, and the time embedding; t [B, F], or [B, 1] for one per clip."""
    frames = t_BF.shape[1]
    tokens = model.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
    temb, timestep_proj, context, _ = model.condition_embedder(t_BF.flatten(), text, None, timestep_seq_len=frames)
    temb_6 = timestep_proj.unflatten(2, (6, -1))
    after = []
    for block in model.blocks:
        modulation = block.scale_shift_table.unsqueeze(0) + wide(temb_6)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unsqueeze(3).unbind(2)

        def modulated(norm: nn.Module, scale: Tensor, shift: Tensor, tokens: Tensor) -> Tensor:
            return (norm(wide(tokens)).unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2).type_as(tokens)

        def gated(tokens: Tensor, change: Tensor, gate: Tensor) -> Tensor:
            by_frame = wide(tokens).unflatten(1, (frames, -1)) + wide(change).unflatten(1, (frames, -1)) * gate
            return by_frame.flatten(1, 2).type_as(tokens)

        normed = modulated(block.norm1, scale, shift, tokens)
        tokens = gated(tokens, _self_attention(block.attn1, normed, rotary, bias), gate)
        tokens = tokens + _cross_attention(block.attn2, block.norm2(wide(tokens)).type_as(tokens), context)
        tokens = gated(tokens, block.ffn(modulated(block.norm3, ffn_scale, ffn_shift, tokens)), ffn_gate)
        after.append(tokens)
    return after, temb


def _flow(
    model: SaltTransformer3DModel, x: Tensor, t_BF: Tensor, text: Tensor, rotary: Rotary, bias: Tensor | None
) -> Tensor:
    tokens, temb = hidden(model, x, t_BF, text, rotary, bias)
    return model.unembed(tokens[-1], temb, x)


class CompiledForward:
    """A compiled forward of `model` for whole-clip losses, without (bidirectional) or with a `BlockCausal` context.

    A `FeatureModel`; not for image-to-video. Needs a C++ compiler on a CPU.
    """

    def __init__(self, model: SaltTransformer3DModel) -> None:
        self.model = model
        self._compiled = torch.compile(_flow, dynamic=False)
        self._tables: dict[tuple, tuple[Rotary, Tensor | None]] = {}

    def block_causal(
        self, blocks: Sequence[int], height: int, width: int, *, clean_context: bool, policy: MemoryPolicy
    ) -> BlockCausal:
        return self.model.block_causal(blocks, height, width, clean_context=clean_context, policy=policy)

    def features(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        after_block: int,
        /,
        *,
        encoder_hidden_states_image: Tensor | None = None,
        attention_context: AttentionContext | None = None,
    ) -> Tensor:
        """The model's own, not compiled: the alignment loss needs features in few updates."""
        image = encoder_hidden_states_image
        return self.model.features(
            x, timestep, text, after_block, encoder_hidden_states_image=image, attention_context=attention_context
        )

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None = None,
        /,
        *,
        return_dict: Literal[False],
        attention_context: AttentionContext | None = None,
    ) -> tuple[Tensor]:
        context = attention_context
        if image is not None or not (context is None or isinstance(context, BlockCausal)):
            raise ValueError("the compiled forward supports neither images nor a KV memory")
        frames, height, width = x.shape[2:]
        t_BF = timestep if timestep.ndim == 2 else timestep[:, None]
        rotary, bias = self._table(context, frames, height, width, x.device)
        return (self._compiled(self.model, x, t_BF, text, rotary, bias),)

    def _table(
        self, context: BlockCausal | None, frames: int, height: int, width: int, device: torch.device
    ) -> tuple[Rotary, Tensor | None]:
        """Rotary table and attention bias of a clip's shape and context, cached."""
        key = (frames, height, width)
        if context is not None:
            key = (*key, context.blocks, context.clean_context, context.sink, context.window)
        if key not in self._tables:
            copies = 2 if context is not None and context.clean_context else 1
            _, p_h, p_w = self.model.config.patch_size
            positions = [*range(frames // copies)] * copies
            rotary = rotary_table(positions, height // p_h, width // p_w, self.model.config.attention_head_dim, device)
            self._tables[key] = (rotary, None if context is None else mask_of(context).to(device))
        return self._tables[key]
