"""The student: diffusers' Wan transformer with a KV memory, per-frame timesteps and access to its hidden states.

Same parameters, configuration and state-dict keys as `diffusers.WanTransformer3DModel`, so whatever loads one loads the
other. Without an attention context it is the bidirectional model, for Wan 2.1 T2V and I2V alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from ..acceleration.kernels.chosen import NO_KERNELS, Kernels
from ..errors import InputError
from ..memory import KVMemory, MemoryGeometry, MemoryPass, MemoryPolicy
from ..memory.far import memory_class
from ..parallel.heads import HeadGroup
from ..rope import rotary_table, wide
from .attention import AttentionContext, Bidirectional, BlockCausal, CrossAttention, SelfAttention, run_eagerly
from .cross_attention_cache import CrossAttentionCache
from .fingerprint import fingerprint
from .modulation import gated_residual, modulated_norm, wide_norm


@dataclass
class StudentOutput:
    """sample: flow [B, C, F, H, W]. hidden: tokens [B, S, dim] after the block `hidden_after`, or None."""

    sample: Tensor
    hidden: Tensor | None = None


class SaltTransformerBlock(nn.Module):
    """Wan's transformer block with modulation per frame, on the modules and parameters of diffusers' own block.

    block: its modules are taken over, under their names and in their order. layer: its index, from 0. kernels: the
    fused kernels that it uses (`salt.acceleration.kernels.choice.set_kernels`).
    """

    attn1: Any  # diffusers declares the processor as one of its own
    attn2: Any
    kernels: Kernels = NO_KERNELS

    def __init__(self, block: WanTransformerBlock, layer: int) -> None:
        super().__init__()
        self.norm1, self.attn1, self.attn2 = block.norm1, block.attn1, block.attn2
        self.norm2, self.ffn, self.norm3 = block.norm2, block.ffn, block.norm3
        self.scale_shift_table = block.scale_shift_table
        self.attn1.set_processor(SelfAttention(layer))
        self.attn2.set_processor(CrossAttention(layer))

    def forward(
        self, hidden_states: Tensor, cache: CrossAttentionCache, temb: Tensor, attention_context: AttentionContext
    ) -> Tensor:
        """Tokens [B, S, dim] -> tokens. temb: [B, F, 6, dim], or [B, 1, 6, dim] for one timestep per clip."""
        modulation = self.scale_shift_table.unsqueeze(0) + wide(temb)  # [B, F, 6, dim]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unsqueeze(3).unbind(2)  # each [B, F, 1, dim]
        norm, residual = self.kernels.norm, self.kernels.residual

        x = hidden_states
        normed = modulated_norm(self.norm1, x, scale, shift, norm)
        x = gated_residual(x, self.attn1(normed, attention_context=attention_context), gate, residual)
        x = x + self.attn2(wide_norm(self.norm2, x, norm), cache)
        normed = modulated_norm(self.norm3, x, ffn_scale, ffn_shift, norm)
        return gated_residual(x, self.ffn(normed), ffn_gate, residual)


class SaltTransformer3DModel(WanTransformer3DModel):
    """Wan 2.1's transformer as a Salt student. See `WanTransformer3DModel` for the configuration."""

    config: Any  # diffusers declares a dict; attribute access is its documented use
    patch_embedding: Any
    blocks: Any
    _gradient_checkpointing_func: Callable[..., Tensor]
    _no_split_modules = ["SaltTransformerBlock"]
    _repeated_blocks = ["SaltTransformerBlock"]
    merged_loras: tuple[str, ...] = ()  # names of the files that were merged into the weights
    kernels: Kernels = NO_KERNELS
    head_group: HeadGroup | None = None  # of processes that compute one stream together

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
    ) -> None:
        super().__init__(
            patch_size, num_attention_heads, attention_head_dim, in_channels, out_channels, text_dim, freq_dim, ffn_dim,
            num_layers, cross_attn_norm, qk_norm, eps, image_dim, added_kv_proj_dim, rope_max_seq_len,
            pos_embed_seq_len,
        )  # fmt: skip
        # The parent has built the parameters; only the block's arithmetic is ours.
        self.blocks = nn.ModuleList(SaltTransformerBlock(block, layer) for layer, block in enumerate(self.blocks))

    @apply_lora_scale("attention_kwargs")
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        attention_context: AttentionContext | None = None,
        hidden_after: int | None = None,
        cross_attention_cache: CrossAttentionCache | None = None,
    ) -> StudentOutput | tuple[Tensor, ...]:
        """Flow of a latent clip or block.

        hidden_states: [B, in_channels, F, H, W] (I2V: noise, mask and condition concatenated along channels).
        timestep: [B], or [B, F] for one per latent frame; in [0, 1000].
        encoder_hidden_states: text [B, L, text_dim]; encoder_hidden_states_image: [B, N, image_dim] (I2V).
        attention_context: a `MemoryPass` for rollouts, a `BlockCausal` for whole clips in training, None for
            bidirectional attention.
        hidden_after: also return the tokens after this transformer block (0-based).
        cross_attention_cache: filled by an earlier call with the same embeddings, or empty to be filled by this one.
        Raises ValueError when the input does not fit the memory or the block index does not exist.
        """
        x, temb, timestep_proj, context = self._embed(hidden_states, timestep, encoder_hidden_states, attention_context)
        cache = self._filled(cross_attention_cache, encoder_hidden_states, encoder_hidden_states_image)
        if hidden_after is not None:
            self._check_layer(hidden_after)
        hidden, group, frames = None, self.head_group, hidden_states.shape[2]
        tokens = x.shape[1] // frames
        if group is not None:
            x = group.own_tokens(x, frames)
        for layer, block in enumerate(self.blocks):
            x = self._run(block, x, cache, timestep_proj, context)
            if layer == hidden_after:
                hidden = x
        if group is not None:
            x = group.all_tokens(x, frames, tokens)
            hidden = None if hidden is None else group.all_tokens(hidden, frames, tokens)
        sample = self.unembed(x, temb, hidden_states)
        if return_dict:
            return StudentOutput(sample, hidden)
        return (sample,) if hidden is None else (sample, hidden)

    def features(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        after_block: int,
        *,
        encoder_hidden_states_image: Tensor | None = None,
        attention_context: AttentionContext | None = None,
    ) -> Tensor:
        """Tokens [B, S, dim] after block `after_block` (0-based); stops there. Other arguments as for `forward`."""
        self._check_layer(after_block)
        x, _, timestep_proj, context = self._embed(hidden_states, timestep, encoder_hidden_states, attention_context)
        cache = self._filled(None, encoder_hidden_states, encoder_hidden_states_image)
        group, frames = self.head_group, hidden_states.shape[2]
        tokens = x.shape[1] // frames
        if group is not None:
            x = group.own_tokens(x, frames)
        for block in self.blocks[: after_block + 1]:
            x = self._run(block, x, cache, timestep_proj, context)
        return x if group is None else group.all_tokens(x, frames, tokens)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.blocks):
            raise ValueError(f"hidden_after: found block {layer}, expected 0 to {len(self.blocks) - 1}")

    def _run(
        self, block: nn.Module, x: Tensor, cache: CrossAttentionCache, temb: Tensor, context: AttentionContext
    ) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, x, cache, temb, context)
        return block(x, cache, temb, context)

    def _embed(
        self, x_BCFHW: Tensor, timestep: Tensor, text: Tensor, context: AttentionContext | None
    ) -> tuple[Tensor, Tensor, Tensor, AttentionContext]:
        """Tokens [B, S, dim], time embedding [B, F or 1, dim], modulation [B, F or 1, 6, dim] and a context."""
        batch, _, frames, height, width = x_BCFHW.shape
        _, p_h, p_w = self.config.patch_size
        grid = (frames, height // p_h, width // p_w)
        context = self._checked_context(context, batch, *grid, x_BCFHW.device)
        tokens = self.patch_embedding(x_BCFHW).flatten(2).transpose(1, 2).contiguous()
        per_frame = timestep if timestep.ndim == 2 else timestep[:, None]  # [B, F] or [B, 1]
        embedder: Any = self.condition_embedder
        waves = embedder.timesteps_proj(per_frame.flatten()).unflatten(0, per_frame.shape)
        temb = embedder.time_embedder(waves.to(next(embedder.time_embedder.parameters()).dtype)).type_as(text)
        return tokens, temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(2, (6, -1)), context

    def _filled(self, cache: CrossAttentionCache | None, text: Tensor, image: Tensor | None) -> CrossAttentionCache:
        """The cache, or a new one; if it is empty, filled with the embedded text and image tokens."""
        cache = CrossAttentionCache() if cache is None else cache
        if cache.empty:
            embedder: Any = self.condition_embedder
            cache.text = embedder.text_embedder(text)
            cache.image = None if image is None else embedder.image_embedder(image)
        return cache

    @run_eagerly
    def _checked_context(
        self, context: AttentionContext | None, batch: int, frames: int, height: int, width: int, device: torch.device
    ) -> AttentionContext:
        """Bookkeeping in plain integers, outside compiled graphs: another start frame does not recompile them."""
        if context is None:
            rotary = rotary_table(range(frames), height, width, self.config.attention_head_dim, device)
            return Bidirectional(rotary, frames)
        if isinstance(context, MemoryPass):
            context.check(batch, frames, height, width)
            # Once frozen it stays so: the same pass may be read again without gradient before backward comes.
            context.freeze |= torch.is_grad_enabled() and self.gradient_checkpointing
        return context

    def unembed(self, tokens: Tensor, temb: Tensor, x_BCFHW: Tensor) -> Tensor:
        """Output norm, projection and unpatchify: tokens [B, S, dim], temb [B, F or 1, dim] -> flow [B, C, F, H, W]."""
        batch, _, frames, height, width = x_BCFHW.shape
        p_t, p_h, p_w = self.config.patch_size
        shift, scale = (self.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)).unsqueeze(3).unbind(2)
        patches = self.proj_out(modulated_norm(self.norm_out, tokens, scale, shift, self.kernels.norm))
        patches = patches.reshape(batch, frames // p_t, height // p_h, width // p_w, p_t, p_h, p_w, -1)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def memory_geometry(self, batch: int, height: int, width: int) -> MemoryGeometry:
        """Geometry of a memory for latents of height x width. Raises InputError if the patch does not divide them."""
        _, p_h, p_w = self.config.patch_size
        if height % p_h or width % p_w:
            raise InputError("latent size", f"found {height}x{width}, expected multiples of the patch {p_h}x{p_w}")
        c = self.config
        heads = c.num_attention_heads // (1 if self.head_group is None else self.head_group.size)
        return MemoryGeometry(c.num_layers, heads, c.attention_head_dim, height // p_h, width // p_w, batch)

    def new_memory(
        self, policy: MemoryPolicy, batch: int, height: int, width: int, frames: int | None = None
    ) -> KVMemory:
        """An empty memory for this model and latents of height x width. frames: as for `KVMemory`."""
        geometry = self.memory_geometry(batch, height, width)
        return memory_class(policy)(policy, geometry, self.dtype, self.device, frames, fingerprint(self))

    def block_causal(
        self, blocks: Sequence[int], height: int, width: int, *, clean_context: bool = False, policy: MemoryPolicy
    ) -> BlockCausal:
        """The training context in which blocks see what they see in a rollout with `policy`.

        Raises InputError for policies without absolute positions.
        """
        if policy.relative or policy.rebuilt or policy.keeps_last_step or policy.kind in ("cyclic", "far"):
            raise InputError("policy", f"found {policy.kind}, expected full, window or sink (absolute positions)")
        geometry = self.memory_geometry(1, height, width)
        rotary = rotary_table(range(sum(blocks)), geometry.height, geometry.width, geometry.head_dim, self.device)
        return BlockCausal(rotary, tuple(blocks), geometry.tokens, clean_context, policy.sink, policy.window)
