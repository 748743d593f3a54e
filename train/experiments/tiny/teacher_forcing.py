"""Teacher forcing: the bidirectional weights learn to go block by block.

[clean clip | noisy clip] in one forward under the block-causal mask, which computes what a rollout with perfect memory
would compute. The clean half carries a little noise at times, so that an imperfect past does not surprise later.
With guidance its result is the causal teacher: of the initial student's trajectories (`start.py`) and of distillation.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import add_noise
from train.experiments.tiny.compiled_forward import CompiledForward
from train.experiments.tiny.cpu_workers import average_gradients, rank, world
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.run_state import Run, placed, seeded, update_ema, warmup_cosine
from train.experiments.tiny.teacher import PROMPT_DROPOUT, ClipPhase, draw_sigmas, matrix_optimizer, phase_at
from train.rollout.block_causal import causal_flow

BLOCK = 3
MEMORY = MemoryPolicy()  # everything is kept
FIRST_BLOCK = 3.0
HISTORY_NOISE = 0.2  # largest share of noise in a clean clip that is to be forgiven


# Short clips first: three blocks of which one has no past, which is the hard one, at less than half the cost. Descents
# from the full rate, once more, pay: on clips never seen the second took the loss from 0.222 to 0.214, the third, with
# four times as many clips, to 0.205. 2400 clips were remembered: 0.011 better than as many new ones. One more descent,
# with twice the clips again, reached 0.199, and its student was no better.
FORCING = (
    ClipPhase(frames=9, batch=20, steps=800, lr=2e-3, lr_end=0.8),
    ClipPhase(frames=12, batch=16, steps=3900, lr=1.5e-3, lr_end=0.02),
    ClipPhase(frames=12, batch=16, steps=3000, lr=1.5e-3, lr_end=0.02),
    ClipPhase(frames=12, batch=16, steps=5000, lr=1.5e-3, lr_end=0.02),
)


def forcing_forward(
    model: SaltTransformer3DModel | CompiledForward, past: Tensor, noisy: Tensor, sigma_BF: Tensor, text: Tensor
) -> Tensor:
    """Flow of every noisy block given the clean blocks before it; past and noisy [B, 16, F, H, W]."""
    blocks = [BLOCK] * (noisy.shape[2] // BLOCK)
    return causal_flow(model, noisy, sigma_BF, Conditioning(text), blocks, MEMORY, past)


def forcing_loss(
    model: SaltTransformer3DModel | CompiledForward, x0: Tensor, text: Tensor, generator: torch.Generator
) -> Tensor:
    """Flow matching with one sigma per block, against a past that for half the clips is slightly noisy.

    The first block counts FIRST_BLOCK times: it has no past to copy from, and what it misses stays missing.
    """
    batch, _, frames = x0.shape[:3]
    sigma_BF = draw_sigmas(batch * (frames // BLOCK), generator).view(batch, -1).repeat_interleave(BLOCK, dim=1)
    strength = HISTORY_NOISE * torch.rand(batch, generator=generator) * (torch.rand(batch, generator=generator) < 0.5)
    noise, past_noise = (torch.randn(x0.shape, generator=generator).to(x0.device) for _ in range(2))
    sigma_BF, strength = sigma_BF.to(x0.device), strength.to(x0.device)
    past = add_noise(x0, past_noise, strength)
    flow = forcing_forward(model, past, add_noise(x0, noise, sigma_BF), sigma_BF, text)
    error_F = (flow - (noise - x0)).square().mean(dim=(0, 1, 3, 4))
    weight_F = torch.ones_like(error_F)
    weight_F[:BLOCK] = FIRST_BLOCK
    return (weight_F * error_F).sum() / weight_F.sum()


def train_forcing(
    folder: Path,
    teacher_folder: Path,
    latents_folder: Path,
    phases: tuple[ClipPhase, ...] = FORCING,
    seed: int = 3,
    device: str = "cpu",
    compiled: bool = False,
) -> None:
    """Stage one; begins from the teacher's weights and leaves averaged ones in `final/`. compiled: see `quick`."""
    run = Run(folder)
    data = Latents(latents_folder)
    model = placed(SaltTransformer3DModel.from_pretrained(teacher_folder), device)
    net = CompiledForward(model) if compiled else model
    optimizer = matrix_optimizer(model)
    ema = {name: value.detach().clone().float() for name, value in model.state_dict().items()}
    state, step = run.load(), 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    losses: list[float] = []
    total = sum(phase.steps for phase in phases)
    while step < total:
        phase, phase_step = phase_at(phases, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * warmup_cosine(phase_step, phase.steps, 50, phase.lr_end)
        generator = seeded(seed, step * world() + rank())
        x0, text = data.batch(max(phase.batch // world(), 1), phase.frames, generator, PROMPT_DROPOUT)
        with torch.autocast(device, torch.bfloat16):
            loss = forcing_loss(net, x0.to(device), text.to(device), generator)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_ema(ema, model, min(0.995, step / (step + 10)))
        losses.append(loss.item())
        if rank() == 0 and (step % 25 == 0 or step == total):
            run.log(step, loss=sum(losses) / len(losses), frames=phase.frames)
            losses = []
        if rank() == 0 and (run.due() or step == total):
            run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), ema=ema, step=step)
    if rank() == 0:
        model.load_state_dict(ema)
        model.save_pretrained(folder / "final")
