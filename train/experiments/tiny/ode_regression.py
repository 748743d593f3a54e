"""The ODE-regression stage: the student that distillation starts from.

Causal Forcing's ODE stage: from any state on a guided trajectory of the causal teacher, behind clean blocks, predict
the end of the trajectory. Clips and loss are those of `python -m train distill tiny_ode`; the loop and the optimizer
(Muon) are this experiment's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.models.word_embedder import WordEmbedder
from train.config.loader import load_recipe
from train.config.model_configs import WAN21_CHANNELS
from train.config.recipe import Recipe
from train.data.clip_dataset import ClipDataset
from train.data.trajectories import generate_clips
from train.experiments.tiny.run_state import placed
from train.experiments.tiny.training_loop import ClipPhase, LoopSettings, LoopStep, train_phases
from train.methods.ode_regression import trajectory_loss

CLIP_FRAMES = 12  # latent; four blocks, as many as the longest window holds
BATCH = 16


def start_recipe(forced: Path, clips: Path, count: int) -> Recipe:
    """`tiny_ode` with `forced` as its causal teacher and `count` clips in `clips`, at the steps of a 4-step student."""
    return load_recipe(
        "tiny_ode",
        [
            f"models.student={forced}", f"models.teacher={forced}", f"data.clips={clips}", f"start.clips={count}",
            f"rollout.frames={CLIP_FRAMES}", "rollout.share={4: 1.0}", "start.teacher_steps=24",
            "start.history=rollout", "data.history=", "start.step_for=block",
            "optimisation.micro_batch=32", "optimisation.precision=bf16",
        ],
    )  # fmt: skip


def train_start(
    folder: Path, forced: Path, clips: int = 704, steps: int = 800, lr: float = 1e-3, seed: int = 5,
    device: str = "cpu",
) -> None:  # fmt: skip
    """Generate the missing clips, then train or resume; writes averaged weights to `folder`/final."""
    recipe = start_recipe(forced, folder / "clips", clips)
    generate_clips(recipe, torch.device(device))
    dataset = ClipDataset(recipe)
    words = WordEmbedder()
    texts = {prompt: words.encode([prompt])[0] for prompt in set(dataset.prompts)}
    model = placed(load_student(forced, dtype=torch.float32), device)

    def loss_of(step: LoopStep) -> Tensor:
        picked = torch.randint(len(dataset.paths), (step.clips,), generator=step.generator).tolist()
        latents, trajectory = _read_clips(dataset, picked, device)
        text = torch.stack([texts[dataset.prompts[i]] for i in picked]).to(device)
        samples = range(step.clips)
        return trajectory_loss(model, latents, trajectory, latents, Conditioning(text), samples, recipe, step.step)

    phases = (ClipPhase(CLIP_FRAMES, BATCH, steps, lr, lr_end=0.02),)
    train_phases(folder, model, phases, loss_of, LoopSettings(seed, warmup=50, ema=0.99, log_every=25), device)


def _read_clips(dataset: ClipDataset, picked: list[int], device: str) -> tuple[Tensor, Tensor]:
    """Latents [B, 16, F, 8, 8] and trajectories [B, S, 16, F, 8, 8]."""
    clips = [dataset(i, WAN21_CHANNELS) for i in picked]
    latents = torch.stack([clip.latents for clip in clips])
    trajectory = torch.stack([clip.trajectory for clip in clips if clip.trajectory is not None])
    return latents.to(device), trajectory.to(device)
