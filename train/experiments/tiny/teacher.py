"""The teacher stage: a bidirectional Wan transformer trained by flow matching on whole clips of latents.

Flow matching: x_t = (1 - sigma) x0 + sigma eps, target v = eps - x0. sigma is warped with shift 5, as inference warps
it, for most clips and uniform for the rest. First single frames, many at once, which teach looks and words; then
clips of 5 latent frames, then all 21.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import add_noise, warp
from train.experiments.tiny.compiled_forward import CompiledForward
from train.experiments.tiny.cpu_workers import average_gradients, rank, world
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.muon import Muon
from train.experiments.tiny.run_state import Run, placed, seeded, update_ema, warmup_cosine

UNIFORM_SHARE = 0.3  # clips whose sigma is uniform instead of warped
PROMPT_DROPOUT = 0.1
EMA_DECAY = 0.998


@dataclass(frozen=True)
class ClipPhase:
    """Steps on clips of one length. lr_end: the factor on `lr` at the last step."""

    frames: int
    batch: int
    steps: int
    lr: float
    lr_end: float


FULL = (
    ClipPhase(frames=1, batch=128, steps=1300, lr=2e-3, lr_end=0.8),
    ClipPhase(frames=5, batch=24, steps=500, lr=2e-3, lr_end=0.8),
    ClipPhase(frames=12, batch=16, steps=3000, lr=1.5e-3, lr_end=0.8),
    ClipPhase(frames=21, batch=16, steps=3300, lr=1.2e-3, lr_end=0.02),
)
QUICK = tuple(replace(p, batch=max(p.batch // 3, 4), steps=60) for p in FULL)


def new_transformer(seed: int) -> SaltTransformer3DModel:
    """The 4.3 M-parameter architecture of teacher, student and critic, freshly initialised."""
    torch.manual_seed(seed)
    model = SaltTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16,
        text_dim=4096, freq_dim=256, ffn_dim=256, num_layers=4,
    )  # fmt: skip
    with torch.no_grad():
        # Word vectors have values of 1/8: widen this layer so that they arrive with spread one.
        model.condition_embedder.text_embedder.linear_1.weight.normal_(std=0.125)
        # Begin as v(x) = x, which is nearly right at high noise: an isometry in, its transpose out. The last norm
        # scales a token of 64 unit normals by 2 on the way.
        into = nn.init.orthogonal_(torch.empty(256, 64))
        model.patch_embedding.weight.copy_(into.view_as(model.patch_embedding.weight))
        channel_last = into.view(256, 16, 4).transpose(1, 2).reshape(256, 64)  # the head writes pixels, then channels
        model.proj_out.weight.copy_(0.5 * channel_last.T)
        for layer in (model.patch_embedding, model.proj_out):
            nn.init.zeros_(layer.bias)
        model.scale_shift_table.mul_(0.1)
        for block in model.blocks:
            block.attn2.to_out[0].weight.mul_(0.2)
            block.attn2.to_out[0].bias.zero_()
    return model


def matrix_optimizer(model: nn.Module) -> Muon:
    """Muon for the transformer blocks' matrices and the text layer that reads 4096 values; Adam for the rest."""
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and (name.startswith("blocks.") or "text_embedder.linear_1" in name)
    ]
    chosen = {id(p) for p in matrices}
    return Muon([p for p in model.parameters() if id(p) not in chosen], matrices, scale=0.4)


def draw_sigmas(count: int, generator: torch.Generator, uniform_share: float = UNIFORM_SHARE) -> Tensor:
    """`count` noise levels in (0, 1): shift-5 warped, but for a share drawn evenly."""
    u = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < uniform_share, u, warp(1000 * u))


def flow_matching_loss(
    model: Callable[..., Any], x0: Tensor, text: Tensor, generator: torch.Generator, uneven: float = 0.0
) -> Tensor:
    """mean((v(x_t, sigma) - (eps - x0))^2) at one sigma per clip; for a share `uneven` of them one per three frames.

    Where all frames are equally noisy they give away their own motion, or nothing does: words of direction matter in a
    narrow range only. Beside cleaner frames they matter everywhere.
    """
    batch, _, frames = x0.shape[:3]
    sigma_BF = draw_sigmas(batch, generator)[:, None].expand(batch, frames)
    if uneven:
        several = draw_sigmas(batch * -(-frames // 3), generator).view(batch, -1).repeat_interleave(3, dim=1)
        chosen = torch.rand(batch, 1, generator=generator) < uneven
        sigma_BF = torch.where(chosen, several[:, :frames], sigma_BF)
    sigma_BF = sigma_BF.to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    (flow,) = model(add_noise(x0, noise, sigma_BF), 1000 * sigma_BF, text, return_dict=False)
    return (flow - (noise - x0)).square().mean()


def train_teacher(
    folder: Path,
    latents_folder: Path,
    phases: tuple[ClipPhase, ...] = FULL,
    seed: int = 2,
    device: str = "cpu",
    start: Path | None = None,
    compiled: bool = False,
    uneven: float = 0.5,
) -> None:
    """Train or go on training; leaves the averaged weights in `final/`. Workers share the batch between them.

    start: a folder of weights to begin from. compiled: see `compiled_forward`. uneven: see `flow_matching_loss`.
    """
    run = Run(folder)
    data = Latents(latents_folder)
    model = placed(SaltTransformer3DModel.from_pretrained(start) if start else new_transformer(seed), device)
    net = CompiledForward(model) if compiled else model
    optimizer = matrix_optimizer(model)
    ema = {name: value.detach().clone().float() for name, value in model.state_dict().items()}
    state, step = run.load(), 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    total = sum(phase.steps for phase in phases)
    losses: list[float] = []
    while step < total:
        phase, phase_step = phase_at(phases, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * warmup_cosine(phase_step, phase.steps, 100, phase.lr_end)
        generator = seeded(seed, step * world() + rank())
        x0, text = data.batch(phase.batch // world(), phase.frames, generator, PROMPT_DROPOUT)
        with torch.autocast(device, torch.bfloat16):
            loss = flow_matching_loss(net, x0.to(device), text.to(device), generator, uneven)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_ema(ema, model, min(EMA_DECAY, step / (step + 10)))
        losses.append(loss.item())
        if rank() == 0 and (step % 50 == 0 or step == total):
            run.log(step, loss=sum(losses) / len(losses), frames=phase.frames)
            losses = []
        if rank() == 0 and (run.due() or step == total):
            run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), ema=ema, step=step)
    if rank() == 0:
        model.load_state_dict(ema)
        model.save_pretrained(folder / "final")


def phase_at(phases: tuple[ClipPhase, ...], step: int) -> tuple[ClipPhase, int]:
    """The phase that `step` falls in and the step's number inside it."""
    for phase in phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError(f"step {step} is past the last phase")
