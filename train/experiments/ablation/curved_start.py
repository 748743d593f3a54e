"""The start of the deciding experiment (group 5): a causal student whose field is curved.

It learns the guided flow of the causal teacher itself, at any noise level, behind clean blocks of real clips. ODE
regression, which the other groups start from, learns where trajectories end instead.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.word_embedder import WordEmbedder
from salt.schedule import add_noise
from train.config.loader import load_recipe
from train.data.clip_dataset import ClipDataset
from train.data.encode_videos import encode_videos
from train.evaluation.sampling import BLOCK_GUIDANCE
from train.experiments.tiny.run_state import placed
from train.experiments.tiny.teacher import draw_sigmas
from train.experiments.tiny.training_loop import ClipPhase, LoopSettings, LoopStep, train_phases
from train.rollout.block_causal import ClipModel, causal_flow, clip_blocks

FRAMES = 6  # latent; two blocks, one of them with a past
PHASE = ClipPhase(FRAMES, batch=8, steps=120, lr=1e-3, lr_end=0.05)
REAL_CLIPS = 96


def train_curved_start(folder: Path, teacher: Path, phase: ClipPhase = PHASE, clips: int = REAL_CLIPS) -> None:
    """Encode the missing clips, then train or resume; writes averaged weights to `folder`/final. On the CPU, seeded."""
    settings = (f"models.student={teacher}", f"data.clips={folder / 'clips'}", f"start.clips={clips}")
    recipe = load_recipe("tiny_cd", [*settings, f"rollout.frames={phase.frames}", "optimisation.precision=bf16"])
    encode_videos(recipe, None, torch.device("cpu"))
    dataset = ClipDataset(recipe)
    words = WordEmbedder()
    student, frozen = (placed(load_student(teacher, dtype=torch.float32), "cpu") for _ in range(2))
    frozen.requires_grad_(False)
    blocks = clip_blocks(recipe.rollout, phase.frames)

    def loss_of(step: LoopStep) -> Tensor:
        picked = torch.randint(len(dataset.paths), (step.clips,), generator=step.generator).tolist()
        clean = torch.stack([dataset(i, 16).latents for i in picked])
        text = words.encode([dataset.prompts[i] for i in picked])
        return guided_flow_loss(student, frozen, clean, text, blocks, step.generator)

    train_phases(folder, student, (phase,), loss_of, LoopSettings(seed=7, warmup=10, ema=0.95, log_every=10), "cpu")


def guided_flow_loss(
    student: ClipModel, teacher: ClipModel, clean: Tensor, text: Tensor, blocks: list[int], generator: torch.Generator
) -> Tensor:
    """mean((v - (u + g (c - u)))^2): the student's flow against the teacher's guided one, on clips [B, C, F, H, W]."""
    sigma_BF = draw_sigmas(len(clean) * len(blocks), generator).view(len(clean), -1)
    sigma_BF = sigma_BF.repeat_interleave(torch.tensor(blocks), dim=1)
    x_t = add_noise(clean, torch.randn(clean.shape, generator=generator), sigma_BF)

    def flow(model: ClipModel, words: Tensor) -> Tensor:
        return causal_flow(model, x_t, sigma_BF, Conditioning(words), blocks, MemoryPolicy(), clean).float()

    with torch.no_grad():
        unguided = flow(teacher, torch.zeros_like(text))
        target = unguided + BLOCK_GUIDANCE * (flow(teacher, text) - unguided)
    return (flow(student, text) - target).square().mean()
