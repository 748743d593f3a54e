"""The discriminator of salt-tiny's adversarial stage, with a forward that compiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from salt.models.transformer_salt import SaltTransformer3DModel
from salt.rope import rotary_table
from salt.schedule import NUM_TRAIN_TIMESTEPS
from train.adversarial.discriminator import DiscriminatorHead, read_blocks
from train.experiments.tiny.compiled_forward import hidden


class Discriminator(nn.Module):
    """Logits [B, F] of clips [B, 16, F, H, W] at noise level sigma [B] with text [B, L, D]; higher is more real.

    Computes `train.adversarial.discriminator.logits`.
    """

    def __init__(self, body: SaltTransformer3DModel, compiled: bool = False) -> None:
        super().__init__()
        self.body = body
        for unused in (body.scale_shift_table, *body.proj_out.parameters()):
            unused.requires_grad_(False)  # the output head is not used
        self.blocks = read_blocks(len(body.blocks))
        dim = body.config.num_attention_heads * body.config.attention_head_dim
        self.head = DiscriminatorHead(dim, len(self.blocks))
        self._hidden = torch.compile(hidden, dynamic=False) if compiled else hidden

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        frames, (_, p_h, p_w) = x.shape[2], self.body.config.patch_size
        sides = (x.shape[3] // p_h, x.shape[4] // p_w)
        rotary = rotary_table(range(frames), *sides, self.body.config.attention_head_dim, x.device)
        tokens, _ = self._hidden(self.body, x, NUM_TRAIN_TIMESTEPS * sigma[:, None], text, rotary, None)
        return self.head([tokens[block] for block in self.blocks], frames)
