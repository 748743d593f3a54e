"""The judge of the finishing stage: a transformer that says of a noised clip, frame by frame, how real it looks.

Its body begins as the causal teacher, whose features know words, outlines and motion already (as in LADD, arXiv
2403.12015), sees whole clips, and learns along with a small head on the tokens after all blocks but the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from salt.models.transformer_salt import SaltTransformer3DModel
from salt.rope import rotary_table
from salt.schedule import NUM_TRAIN_TIMESTEPS
from train.experiments.tiny.compiled_forward import hidden


class Discriminator(nn.Module):
    """Logits [B, F] of clips [B, 16, F, H, W] at noise level sigma [B], told text [B, L, D]: more is more real."""

    def __init__(self, body: SaltTransformer3DModel, compiled: bool = False) -> None:
        super().__init__()
        self.body = body
        for unused in (body.scale_shift_table, *body.proj_out.parameters()):
            unused.requires_grad_(False)  # of the output head, which is not asked
        dim, layers = body.config.num_attention_heads * body.config.attention_head_dim, len(body.blocks) - 1
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        verdict = nn.Linear(dim, 1)
        nn.init.zeros_(verdict.weight)
        nn.init.zeros_(verdict.bias)
        self.head = nn.Sequential(nn.Linear(dim * layers, dim), nn.SiLU(), verdict)
        self._hidden = torch.compile(hidden, dynamic=False) if compiled else hidden

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        frames, (_, p_h, p_w) = x.shape[2], self.body.config.patch_size
        sides = (x.shape[3] // p_h, x.shape[4] // p_w)
        rotary = rotary_table(range(frames), *sides, self.body.config.attention_head_dim, x.device)
        tokens, _ = self._hidden(self.body, x, NUM_TRAIN_TIMESTEPS * sigma[:, None], text, rotary, None)
        seen = torch.cat([norm(t.float()) for norm, t in zip(self.norms, tokens[1:], strict=True)], dim=-1)
        return self.head(seen).squeeze(-1).unflatten(1, (frames, -1)).mean(2).float()
