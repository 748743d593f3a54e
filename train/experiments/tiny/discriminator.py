"""The discriminator of the adversarial stage: a transformer with one logit per latent frame of a noised clip.

Its body is initialised from the causal teacher, whose features encode words, outlines and motion (as in LADD, arXiv
2403.12015), attends to the whole clip, and trains along with a small head on the tokens of all blocks but the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from salt.models.transformer_salt import SaltTransformer3DModel
from salt.rope import rotary_table
from salt.schedule import NUM_TRAIN_TIMESTEPS
from train.experiments.tiny.compiled_forward import hidden


class Discriminator(nn.Module):
    """Logits [B, F] of clips [B, 16, F, H, W] at noise level sigma [B] with text [B, L, D]; higher is more real."""

    def __init__(self, body: SaltTransformer3DModel, compiled: bool = False) -> None:
        super().__init__()
        self.body = body
        for unused in (body.scale_shift_table, *body.proj_out.parameters()):
            unused.requires_grad_(False)  # the output head is not used
        dim, layers = body.config.num_attention_heads * body.config.attention_head_dim, len(body.blocks) - 1
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        logit = nn.Linear(dim, 1)
        nn.init.zeros_(logit.weight)
        nn.init.zeros_(logit.bias)
        self.head = nn.Sequential(nn.Linear(dim * layers, dim), nn.SiLU(), logit)
        self._hidden = torch.compile(hidden, dynamic=False) if compiled else hidden

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        frames, (_, p_h, p_w) = x.shape[2], self.body.config.patch_size
        sides = (x.shape[3] // p_h, x.shape[4] // p_w)
        rotary = rotary_table(range(frames), *sides, self.body.config.attention_head_dim, x.device)
        tokens, _ = self._hidden(self.body, x, NUM_TRAIN_TIMESTEPS * sigma[:, None], text, rotary, None)
        features = torch.cat([norm(t.float()) for norm, t in zip(self.norms, tokens[1:], strict=True)], dim=-1)
        return self.head(features).squeeze(-1).unflatten(1, (frames, -1)).mean(2).float()
