"""The teacher stage: a bidirectional Wan transformer trained by flow matching on whole clips of latents.

Flow matching: x_t = (1 - sigma) x0 + sigma eps, target v = eps - x0. sigma is warped with shift 5, as in sampling, for
most clips and uniform for the rest. Large batches of single frames come first and teach appearance and words; then
clips of 5 latent frames, then all 21.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import add_noise, warp
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.run_state import placed
from train.experiments.tiny.training_loop import ClipPhase, LoopSettings, LoopStep, train_phases

UNIFORM_SHARE = 0.3  # of clips, whose sigma is uniform instead of warped
UNEVEN_SHARE = 0.5  # of clips, which have one noise level per three frames
PROMPT_DROPOUT = 0.1


FULL_PHASES = (
    ClipPhase(frames=1, batch=128, steps=1300, lr=2e-3, lr_end=0.8),
    ClipPhase(frames=5, batch=24, steps=500, lr=2e-3, lr_end=0.8),
    ClipPhase(frames=12, batch=16, steps=3000, lr=1.5e-3, lr_end=0.8),
    ClipPhase(frames=21, batch=16, steps=3300, lr=1.2e-3, lr_end=0.02),
)
QUICK_PHASES = tuple(replace(p, batch=max(p.batch // 3, 4), steps=60) for p in FULL_PHASES)


def new_transformer(seed: int) -> SaltTransformer3DModel:
    """A freshly initialised transformer of salt-tiny's architecture (teacher, student and critic), 4.3 M parameters."""
    torch.manual_seed(seed)
    model = SaltTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16,
        text_dim=4096, freq_dim=256, ffn_dim=256, num_layers=4,
    )  # fmt: skip
    with torch.no_grad():
        # Word vectors have values of 1/8: scale this layer so that its output has unit variance.
        model.condition_embedder.text_embedder.linear_1.weight.normal_(std=0.125)
        # Start as v(x) = x, which is nearly right at high noise: an isometry in, its transpose out. The last norm
        # scales a token of 64 unit normals by 2.
        embed = nn.init.orthogonal_(torch.empty(256, 64))
        model.patch_embedding.weight.copy_(embed.view_as(model.patch_embedding.weight))
        channel_last = embed.view(256, 16, 4).transpose(1, 2).reshape(256, 64)  # the head writes pixels, then channels
        model.proj_out.weight.copy_(0.5 * channel_last.T)
        for layer in (model.patch_embedding, model.proj_out):
            nn.init.zeros_(layer.bias)
        model.scale_shift_table.mul_(0.1)
        for block in model.blocks:
            block.attn2.to_out[0].weight.mul_(0.2)
            block.attn2.to_out[0].bias.zero_()
    return model


def draw_sigmas(count: int, generator: torch.Generator, uniform_share: float = UNIFORM_SHARE) -> Tensor:
    """`count` noise levels in (0, 1): warped with shift 5, a share of them uniform."""
    u = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < uniform_share, u, warp(1000 * u))


def flow_matching_loss(
    model: SaltTransformer3DModel,
    x0: Tensor,
    text: Tensor,
    generator: torch.Generator,
    uneven: float = 0.0,
) -> Tensor:
    """mean((v(x_t, sigma) - (eps - x0))^2) at one sigma per clip, or one per three frames for a share `uneven`.

    Where all frames are equally noisy, they show the motion themselves or not at all, so words of direction matter in a
    narrow range of noise only. Beside cleaner frames they matter at every level.
    """
    batch, _, frames = x0.shape[:3]
    sigma_BF = draw_sigmas(batch, generator)[:, None].expand(batch, frames)
    if uneven:
        per_block = draw_sigmas(batch * -(-frames // 3), generator).view(batch, -1).repeat_interleave(3, dim=1)
        chosen = torch.rand(batch, 1, generator=generator) < uneven
        sigma_BF = torch.where(chosen, per_block[:, :frames], sigma_BF)
    sigma_BF = sigma_BF.to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    (flow,) = model(add_noise(x0, noise, sigma_BF), 1000 * sigma_BF, text, return_dict=False)
    return (flow - (noise - x0)).square().mean()


def train_teacher(
    folder: Path,
    latents_folder: Path,
    phases: tuple[ClipPhase, ...] = FULL_PHASES,
    seed: int = 2,
    device: str = "cpu",
) -> None:
    """Train or resume; writes the averaged weights to `folder`/final. CPU workers share each batch."""
    data = Latents(latents_folder)
    model = placed(new_transformer(seed), device)

    def loss_of(step: LoopStep) -> Tensor:
        x0, text = data.batch(step.clips, step.phase.frames, step.generator, PROMPT_DROPOUT)
        return flow_matching_loss(model, x0.to(device), text.to(device), step.generator, UNEVEN_SHARE)

    settings = LoopSettings(seed, warmup=100, ema=0.998, log_every=50)
    train_phases(folder, model, phases, loss_of, settings, device)
