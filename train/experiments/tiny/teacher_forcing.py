"""The teacher-forcing stage: the bidirectional teacher becomes a causal one, block by block.

Every block is denoised behind the clean clip, in one forward on [clean clip | noisy clip] under the block-causal mask:
what a rollout with perfect memory would compute. The clean clip carries a little noise at times, so that the model
tolerates an imperfect past. The result, with guidance, is the causal teacher of the initial student's trajectories
(`ode_regression.py`) and of distillation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import add_noise
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.run_state import placed
from train.experiments.tiny.teacher import PROMPT_DROPOUT, draw_sigmas
from train.experiments.tiny.training_loop import ClipPhase, LoopSettings, LoopStep, train_phases
from train.methods.teacher_forcing import teacher_forcing_error
from train.rollout.block_causal import ClipModel

FRAMES_PER_BLOCK = 3
FULL_MEMORY = MemoryPolicy()
FIRST_BLOCK_WEIGHT = 3.0
HISTORY_NOISE = 0.2  # largest noise level of the clean clip

# Short clips first: three blocks, one of them without a past, which is the hard one, at less than half the cost. Each
# further descent from the full rate lowered the loss on new clips: from 0.222 to 0.214, and with four times as many
# clips (2400 were overfitted by 0.011) to 0.205. One more, with twice the clips again, reached 0.199, and its student
# was no better.
FORCING_PHASES = (
    ClipPhase(frames=9, batch=20, steps=800, lr=2e-3, lr_end=0.8),
    ClipPhase(frames=12, batch=16, steps=3900, lr=1.5e-3, lr_end=0.02),
    ClipPhase(frames=12, batch=16, steps=3000, lr=1.5e-3, lr_end=0.02),
    ClipPhase(frames=12, batch=16, steps=5000, lr=1.5e-3, lr_end=0.02),
)


def forcing_loss(model: ClipModel, x0: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching of clips x0 [B, 16, F, 8, 8], one noise level per block; the past of half the clips is noisy, too.

    The first block counts FIRST_BLOCK_WEIGHT times: it has no past to copy from, and what it misses stays missing.
    """
    batch, _, frames = x0.shape[:3]
    blocks = [FRAMES_PER_BLOCK] * (frames // FRAMES_PER_BLOCK)
    sigma_BF = draw_sigmas(batch * len(blocks), generator).view(batch, -1).repeat_interleave(FRAMES_PER_BLOCK, dim=1)
    strength = HISTORY_NOISE * torch.rand(batch, generator=generator) * (torch.rand(batch, generator=generator) < 0.5)
    noise, history_noise = (torch.randn(x0.shape, generator=generator).to(x0.device) for _ in range(2))
    sigma_BF, strength = sigma_BF.to(x0.device), strength.to(x0.device)
    history = add_noise(x0, history_noise, strength)
    error = teacher_forcing_error(model, x0, history, noise, sigma_BF, Conditioning(text), blocks, FULL_MEMORY)
    error_F = error.mean(dim=(0, 1, 3, 4))
    weight_F = torch.ones_like(error_F)
    weight_F[:FRAMES_PER_BLOCK] = FIRST_BLOCK_WEIGHT
    return (weight_F * error_F).sum() / weight_F.sum()


def train_forcing(
    folder: Path,
    teacher_folder: Path,
    latents_folder: Path,
    phases: tuple[ClipPhase, ...] = FORCING_PHASES,
    seed: int = 3,
    device: str = "cpu",
) -> None:
    """Train or resume, starting from the teacher's weights; writes the averaged ones to `folder`/final."""
    data = Latents(latents_folder)
    model = placed(SaltTransformer3DModel.from_pretrained(teacher_folder), device)

    def loss_of(step: LoopStep) -> Tensor:
        x0, text = data.batch(step.clips, step.phase.frames, step.generator, PROMPT_DROPOUT)
        return forcing_loss(model, x0.to(device), text.to(device), step.generator)

    settings = LoopSettings(seed, warmup=50, ema=0.995, log_every=25)
    train_phases(folder, model, phases, loss_of, settings, device)
