"""The discriminator: a transformer with one logit per latent frame of a noised clip.

Its body is initialised from a teacher or critic, whose features encode words, outlines and motion (as in LADD, arXiv
2403.12015), attends to the whole clip, and trains along with a small head on the tokens of some blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import NUM_TRAIN_TIMESTEPS

HEAD = "discriminator_head"  # the body's submodule, so that it is sharded, saved and stepped with the body
MOST_BLOCKS = 4  # that the head reads


def read_blocks(count: int) -> list[int]:
    """Transformer blocks whose tokens the head reads: all but the first, or MOST_BLOCKS of them with the last."""
    taken = min(MOST_BLOCKS, count - 1)
    return [round(count * (i + 1) / taken) - 1 for i in range(taken)] if taken < count - 1 else list(range(1, count))


class DiscriminatorHead(nn.Module):
    """Logits [B, F] of the tokens [B, F * tokens, dim] after some of the body's blocks."""

    def __init__(self, dim: int, blocks: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(blocks))
        logit = nn.Linear(dim, 1)
        nn.init.zeros_(logit.weight)
        nn.init.zeros_(logit.bias)
        self.head = nn.Sequential(nn.Linear(dim * blocks, dim), nn.SiLU(), logit)

    def forward(self, tokens: Sequence[Tensor], frames: int) -> Tensor:
        features = torch.cat([norm(t.float()) for norm, t in zip(self.norms, tokens, strict=True)], dim=-1)
        return self.head(features).squeeze(-1).unflatten(1, (frames, -1)).mean(2).float()


def add_head(body: SaltTransformer3DModel, seed: int) -> SaltTransformer3DModel:
    """Make a transformer a discriminator: add the head, with the seed's weights, and freeze its own output head."""
    for unused in (body.scale_shift_table, *body.proj_out.parameters()):
        unused.requires_grad_(False)
    config = body.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = DiscriminatorHead(
            config.num_attention_heads * config.attention_head_dim, len(read_blocks(len(body.blocks)))
        )
    body.add_module(HEAD, head.to(next(body.parameters()).device))
    return body


def logits(body: SaltTransformer3DModel, clips: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """Logits [B, F] of clips [B, C, F, H, W] at noise level sigma [B] with text [B, L, D]; higher is more real.

    body: a transformer that `add_head` has made a discriminator.
    """
    blocks = read_blocks(len(body.blocks))
    tokens: dict[int, Tensor] = {}

    def keep(index: int) -> None:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            tokens[index] = output

        handles.append(body.blocks[index].register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for index in blocks:
        keep(index)
    try:
        body.features(clips, NUM_TRAIN_TIMESTEPS * sigma, text, blocks[-1])
    finally:
        for handle in handles:
            handle.remove()
    head = body.get_submodule(HEAD)
    return head([tokens[index] for index in blocks], clips.shape[2])
