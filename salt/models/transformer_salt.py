"""The student: diffusers' Wan transformer, with a KV memory, per-frame timesteps and hidden states on request.

Same parameters, configuration and state-dict keys as `diffusers.WanTransformer3DModel`, so whatever loads one loads the
other. Without a scope it is the bidirectional model, for Wan 2.1 T2V and I2V alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch import Tensor

from ..conditioning import Conditioning
from ..memory import KVMemory, MemoryGeometry, MemoryPass, MemoryPolicy
from ..model_input import ModelInput
from ..rope import rotary_table, wide
from .attention import AttentionContext, Bidirectional, BlockCausal, CrossAttention, SelfAttention
from .cross_attention_cache import CrossAttentionCache, CrossAttentionCaches


@dataclass
class StudentOutput:
    """sample: flow [B, C, F, H, W]. hidden: tokens [B, S, dim] after the block asked for, else None."""

    sample: Tensor
    hidden: Tensor | None = None


class SaltTransformerBlock(WanTransformerBlock):
    """Wan's block with modulation per frame: temb is [B, F, 6, dim], or [B, 1, 6, dim] for one timestep per clip."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, context: CrossAttentionCache, temb: Tensor, scope: AttentionContext
    ) -> Tensor:
        modulation = self.scale_shift_table.unsqueeze(0) + wide(temb)  # [B, F, 6, dim]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unsqueeze(3).unbind(2)  # each [B, F, 1, dim]
        frames = temb.shape[1]

        def by_frame(x: Tensor) -> Tensor:
            return wide(x).unflatten(1, (frames, -1))

        x = hidden_states
        normed = (by_frame(self.norm1(wide(x))) * (1 + scale) + shift).flatten(1, 2).type_as(x)
        x = (by_frame(x) + by_frame(self.attn1(normed, scope=scope)) * gate).flatten(1, 2).type_as(x)
        normed = self.norm2(wide(x)).type_as(x)
        x = x + self.attn2(normed, context)
        normed = (by_frame(self.norm3(wide(x))) * (1 + ffn_scale) + ffn_shift).flatten(1, 2).type_as(x)
        return (by_frame(x) + by_frame(self.ffn(normed)) * ffn_gate).flatten(1, 2).type_as(x)


class SaltTransformer3DModel(WanTransformer3DModel):
    """Wan 2.1's transformer as a Salt student. See `WanTransformer3DModel` for the configuration."""

    config: Any  # diffusers declares a dict; attribute access is its documented use
    patch_embedding: Any
    blocks: Any
    _no_split_modules = ["SaltTransformerBlock"]
    _repeated_blocks = ["SaltTransformerBlock"]

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
        for layer, block in enumerate(self.blocks):
            # The parent has built the parameters; only the block's arithmetic is ours.
            block.__class__ = SaltTransformerBlock
            block.attn1.set_processor(SelfAttention(layer))
            block.attn2.set_processor(CrossAttention(layer))

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
        scope: AttentionContext | None = None,
        hidden_after: int | None = None,
        context: CrossAttentionCache | None = None,
    ) -> StudentOutput | tuple[Tensor, ...]:
        """Flow of a latent clip or block.

        hidden_states: [B, in_channels, F, H, W] (I2V: noise, mask and condition concatenated along channels).
        timestep: [B], or [B, F] for one per latent frame; in [0, 1000].
        encoder_hidden_states: text [B, L, text_dim]; encoder_hidden_states_image: [B, N, image_dim] (I2V).
        scope: a `MemoryPass` for rollouts, a `BlockCausal` for whole clips in training, None for bidirectional.
        hidden_after: also return the tokens after this transformer block (0-based).
        context: what an earlier call has made of the same embeddings, or an empty one for this call to fill.
        Errors: ValueError when the input does not fit the memory or the block index does not exist.
        """
        x, temb, timestep_proj, scope = self._embed(hidden_states, timestep, encoder_hidden_states, scope)
        context = self._fill(context, encoder_hidden_states, encoder_hidden_states_image)
        if hidden_after is not None:
            self._check_layer(hidden_after)
        hidden = None
        for layer, block in enumerate(self.blocks):
            x = self._run(block, x, context, timestep_proj, scope)
            if layer == hidden_after:
                hidden = x
        sample = self._head(x, temb, hidden_states)
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
        scope: AttentionContext | None = None,
    ) -> Tensor:
        """Tokens [B, S, dim] after block `after_block` (0-based); stops there. Other arguments as for `forward`."""
        self._check_layer(after_block)
        x, _, timestep_proj, scope = self._embed(hidden_states, timestep, encoder_hidden_states, scope)
        context = self._fill(None, encoder_hidden_states, encoder_hidden_states_image)
        for block in self.blocks[: after_block + 1]:
            x = self._run(block, x, context, timestep_proj, scope)
        return x

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.blocks):
            raise ValueError(f"hidden_after: found block {layer}, expected 0 to {len(self.blocks) - 1}")

    def _run(
        self, block: Any, x: Tensor, context: CrossAttentionCache, temb: Tensor, scope: AttentionContext
    ) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return cast(Any, self._gradient_checkpointing_func)(block, x, context, temb, scope)
        return block(x, context, temb, scope)

    def _embed(
        self, x_BCFHW: Tensor, timestep: Tensor, text: Tensor, scope: AttentionContext | None
    ) -> tuple[Tensor, Tensor, Tensor, AttentionContext]:
        """Tokens [B, S, dim], time embedding [B, F or 1, dim], modulation [B, F or 1, 6, dim] and a scope."""
        batch, _, frames, height, width = x_BCFHW.shape
        _, p_h, p_w = self.config.patch_size
        grid = (frames, height // p_h, width // p_w)
        ready: AttentionContext = self._ready(scope, batch, *grid, x_BCFHW.device)  # pyright: ignore[reportCallIssue]
        tokens = self.patch_embedding(x_BCFHW).flatten(2).transpose(1, 2).contiguous()
        per_frame = timestep if timestep.ndim == 2 else timestep[:, None]  # [B, F] or [B, 1]
        embedder: Any = self.condition_embedder
        waves = embedder.timesteps_proj(per_frame.flatten()).unflatten(0, per_frame.shape)
        temb = embedder.time_embedder(waves.to(next(embedder.time_embedder.parameters()).dtype)).type_as(text)
        return tokens, temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(2, (6, -1)), ready

    def _fill(self, context: CrossAttentionCache | None, text: Tensor, image: Tensor | None) -> CrossAttentionCache:
        """The context as given, or made of the embeddings."""
        context = CrossAttentionCache() if context is None else context
        if context.empty:
            embedder: Any = self.condition_embedder
            context.text = embedder.text_embedder(text)
            context.image = None if image is None else embedder.image_embedder(image)
        return context

    @torch.compiler.disable
    def _ready(
        self, scope: AttentionContext | None, batch: int, frames: int, height: int, width: int, device: torch.device
    ) -> AttentionContext:
        """Bookkeeping in plain integers, outside any compiled graph: a moving start frame recompiles nothing."""
        if scope is None:
            return Bidirectional(rotary_table(range(frames), height, width, self.config.attention_head_dim, device))
        if isinstance(scope, MemoryPass):
            scope.check(batch, frames, height, width)
            # Once frozen it stays so: the same pass may be read again without gradient before backward comes.
            scope.freeze |= torch.is_grad_enabled() and self.gradient_checkpointing
        return scope

    def _head(self, tokens: Tensor, temb: Tensor, x_BCFHW: Tensor) -> Tensor:
        """Output norm, projection and unpatchify: tokens [B, S, dim], temb [B, F or 1, dim] -> flow [B, C, F, H, W]."""
        batch, _, frames, height, width = x_BCFHW.shape
        p_t, p_h, p_w = self.config.patch_size
        shift, scale = (self.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)).unsqueeze(3).unbind(2)
        normed = self.norm_out(wide(tokens)).unflatten(1, (temb.shape[1], -1)) * (1 + scale) + shift
        patches = self.proj_out(normed.flatten(1, 2).type_as(tokens))
        patches = patches.reshape(batch, frames // p_t, height // p_h, width // p_w, p_t, p_h, p_w, -1)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def memory_geometry(self, batch: int, height: int, width: int) -> MemoryGeometry:
        """Geometry of a memory for latents of height x width. Raises ValueError if the patch does not divide them."""
        _, p_h, p_w = self.config.patch_size
        if height % p_h or width % p_w:
            raise ValueError(f"latent size: found {height}x{width}, expected multiples of the patch {p_h}x{p_w}")
        c = self.config
        return MemoryGeometry(
            c.num_layers, c.num_attention_heads, c.attention_head_dim, height // p_h, width // p_w, batch
        )

    def new_memory(
        self, policy: MemoryPolicy, batch: int, height: int, width: int, frames: int | None = None
    ) -> KVMemory:
        """An empty memory for this model and latents of height x width; `frames` sizes a full memory at once."""
        geometry = self.memory_geometry(batch, height, width)
        return KVMemory(policy, geometry, self.dtype, self.device, frames, fingerprint(self))

    def block_causal(
        self, blocks: Sequence[int], height: int, width: int, *, clean_context: bool = False, policy: MemoryPolicy
    ) -> BlockCausal:
        """The training scope that sees what a rollout with `policy` would see (absolute positions only)."""
        if policy.relative or policy.kind == "cyclic":
            raise ValueError(f"policy: found {policy.kind}, expected full, window or sink (absolute positions)")
        geometry = self.memory_geometry(1, height, width)
        rotary = rotary_table(range(sum(blocks)), geometry.height, geometry.width, geometry.head_dim, self.device)
        return BlockCausal(rotary, tuple(blocks), geometry.tokens, clean_context, policy.sink, policy.window)


class CausalModel:
    """A causal student as the rollout's model callable (`salt.model_input.FlowModel`).

    Called with a `ModelInput` of latents [B, C, F, H, W] at timesteps [B, F], it returns the flow [B, C, F, H, W].
    `conditioning.channels` (Wan I2V) cover the whole clip; the frames of this forward are cut out of them.
    Without gradient, cross-attention keys and values of the latest prompts are cached: use a new object when the
    weights change. student: a `SaltTransformer3DModel`, or what is called like one.
    Raises ValueError for latents that do not fit the memory.
    """

    def __init__(self, student: Callable[..., tuple[Tensor, ...]]) -> None:
        self.student = student
        self.contexts = CrossAttentionCaches()

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        x, conditioning = inputs.x, inputs.conditioning
        if conditioning.channels is not None:
            here = slice(inputs.start_frame, inputs.start_frame + x.shape[2])
            x = torch.cat([x, conditioning.channels[:, :, here]], dim=1)
        context = self.contexts.of(conditioning)
        (flow,) = self.student(
            x,
            inputs.timestep,
            conditioning.text,
            conditioning.image,
            return_dict=False,
            scope=inputs.memory,
            context=context,
        )
        return flow


def fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits that tell two models apart: configuration, names and shapes, and 16 numbers of every parameter.

    Independent of dtype casts only as far as bfloat16 goes; a LoRA or fine-tune changes it. Raises ValueError where
    accelerate has taken the weights apart.
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in dict(getattr(model, "config", {})).items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    samples = []
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type == "meta":
            raise ValueError(
                "model: found weights that come layer by layer (sequential offload), expected them whole; "
                "enable_model_cpu_offload() moves whole models"
            )
        # A float8 weight has rows and their scales, and does not flatten; its codes tell it apart as well.
        weight = parameter.detach()
        flat = getattr(weight, "qdata", weight).flatten()
        samples.append(flat[:: max(flat.numel() // 16, 1)][:16].float())
    if samples:
        digest.update(torch.cat(samples).bfloat16().view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
