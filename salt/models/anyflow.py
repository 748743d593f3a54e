"""AnyFlow-FAR as a student: Wan's transformer with two timesteps and an embedding of larger patches for older blocks.

Same parameters, configuration and state-dict keys as `diffusers.AnyFlowFARTransformer3DModel`. A flow map: it also
takes the timestep that is stepped to, and predicts the mean velocity up to there (AnyFlow, arXiv 2605.13724).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from ..errors import InputError
from ..memory import MemoryGeometry
from ..memory.far import STRIDE, FarPass
from .attention import AttentionContext
from .transformer_salt import SaltTransformer3DModel

WAN_ONLY = ("qk_norm", "added_kv_proj_dim", "pos_embed_seq_len")


class AnyFlowTransformer3DModel(SaltTransformer3DModel):
    """AnyFlow-FAR's transformer. See `AnyFlowFARTransformer3DModel` for the configuration.

    timestep in calls: [B, F, 2], that of the latents and that which is stepped to, or as `SaltTransformer3DModel` takes
    it where both are the same. Every frame of a call has the same. The attention context is a `FarPass`.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        compressed_patch_size: tuple[int, ...] = (1, 4, 4),
        full_chunk_limit: int = 3,
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        image_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        gate_value: float = 0.25,
        deltatime_type: str = "r",
        chunk_partition: tuple[int, ...] = (1, 3, 3, 3, 3, 3, 3, 2),
    ) -> None:
        expected = (patch_size[0], *(STRIDE * side for side in patch_size[1:]))
        if tuple(compressed_patch_size) != expected:
            found = "x".join(map(str, compressed_patch_size))
            raise InputError("compressed_patch_size", f"found {found}, expected {'x'.join(map(str, expected))}")
        if deltatime_type not in ("r", "t-r"):
            raise InputError("deltatime_type", f"found {deltatime_type!r}, expected r or t-r")
        if not chunk_partition or min(chunk_partition) < 1:
            raise InputError("chunk_partition", f"found {list(chunk_partition)}, expected frames of blocks, 1 or more")
        if full_chunk_limit < 2:
            raise InputError("full_chunk_limit", f"found {full_chunk_limit}, expected 2 or more")
        if image_dim is not None:
            raise InputError("image_dim", f"found {image_dim}, expected none: image embeddings are not supported")
        super().__init__(
            patch_size=patch_size, num_attention_heads=num_attention_heads, attention_head_dim=attention_head_dim,
            in_channels=in_channels, out_channels=out_channels, text_dim=text_dim, freq_dim=freq_dim, ffn_dim=ffn_dim,
            num_layers=num_layers, cross_attn_norm=cross_attn_norm, eps=eps, rope_max_seq_len=rope_max_seq_len,
        )  # fmt: skip
        # Wan's own settings are no part of this configuration, in which diffusers does not know them.
        self._internal_dict = FrozenDict({k: v for k, v in self._internal_dict.items() if k not in WAN_ONLY})
        dim = num_attention_heads * attention_head_dim
        large: Any = compressed_patch_size
        self.far_patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=large, stride=large)
        embedder: Any = self.condition_embedder
        embedder.delta_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)

    def memory_geometry(self, batch: int, height: int, width: int) -> MemoryGeometry:
        if height < self.config.compressed_patch_size[1] or width < self.config.compressed_patch_size[2]:
            raise InputError("latent size", f"found {height}x{width}, expected at least one patch of older blocks")
        return super().memory_geometry(batch, height, width)

    def _embed(
        self, x_BCFHW: Tensor, timestep: Tensor, text: Tensor, context: AttentionContext | None
    ) -> tuple[Tensor, Tensor, Tensor, AttentionContext]:
        if not isinstance(context, FarPass):
            raise InputError("memory_policy", "found no far memory, expected one, as far:2: AnyFlow-FAR needs it")
        batch, _, frames, height, width = x_BCFHW.shape
        _, p_h, p_w = self.config.patch_size
        self._checked_context(context, batch, frames, height // p_h, width // p_w, x_BCFHW.device)
        parts = []
        near = x_BCFHW
        if context.writes:
            context.latents = x_BCFHW.detach()
            if context.earlier is not None:
                clip = torch.cat([context.earlier.to(x_BCFHW), x_BCFHW], dim=2)
                near = clip[:, :, context.newly_far :]
                if context.newly_far:
                    parts.append(self.far_patch_embedding(clip[:, :, : context.newly_far]))
        parts.append(self.patch_embedding(near))
        tokens = torch.cat([part.flatten(2).transpose(1, 2) for part in parts], dim=1)
        temb = self._time_embedding(timestep, text)
        embedder: Any = self.condition_embedder
        return tokens, temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(2, (6, -1)), context

    def _time_embedding(self, timestep: Tensor, text: Tensor) -> Tensor:
        """[B, 1, dim]: of the timestep and of the one that is stepped to, mixed by the gate."""
        if timestep.ndim == 1:
            timestep = timestep[:, None]
        pair = timestep[:, 0] if timestep.ndim == 3 else timestep[:, :1].expand(-1, 2)  # [B, 2]
        t, target = pair.unbind(1)
        second = target if self.config.deltatime_type == "r" else t - target
        embedder: Any = self.condition_embedder
        embedded = []
        for which, mlp in ((t, embedder.time_embedder), (second, embedder.delta_embedder)):
            waves = embedder.timesteps_proj(which).to(next(mlp.parameters()).dtype)
            embedded.append(mlp(waves).type_as(text))
        gate = self.config.gate_value
        return torch.lerp(embedded[0], embedded[1], gate)[:, None]

    def unembed(self, tokens: Tensor, temb: Tensor, x_BCFHW: Tensor) -> Tensor:
        """Of the block alone; earlier blocks that were encoded again come before it."""
        _, _, frames, height, width = x_BCFHW.shape
        _, p_h, p_w = self.config.patch_size
        block = frames * (height // p_h) * (width // p_w)
        return super().unembed(tokens[:, -block:], temb, x_BCFHW)
