"""The student that distillation begins with: regression on the guided trajectories of the teacher-forced stage.

Causal Forcing's ODE stage: from any state on a trajectory, past clean blocks, predict where the trajectory ends. Its
clips come from `python -m train precompute tiny_ode`'s own code; only the loop is this room's, compiled and with Muon.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.models.word_embedder import WordEmbedder
from train.config.loader import load_recipe
from train.config.recipe import Recipe
from train.data.clip_dataset import ClipDataset, generate_clips
from train.experiments.tiny.compiled_forward import CompiledForward
from train.experiments.tiny.run_state import Run, placed, seeded, update_ema, warmup_cosine
from train.experiments.tiny.teacher import matrix_optimizer
from train.methods.ode_regression import trajectory_loss

FRAMES = 12  # latent; four blocks, which is what the longest window holds
BATCH = 16


def start_recipe(forced: Path, clips: Path, count: int) -> Recipe:
    """`tiny_ode` with `forced` as its causal teacher and `count` clips in `clips`, at the steps of a 4-step student."""
    return load_recipe(
        "tiny_ode",
        [
            f"models.student={forced}", f"models.teacher={forced}", f"data.clips={clips}", f"start.clips={count}",
            f"rollout.frames={FRAMES}", "rollout.share={4: 1.0}", "start.teacher_steps=24",
            "optimisation.micro_batch=32", "optimisation.precision=bf16",
        ],
    )  # fmt: skip


def train_start(
    folder: Path, forced: Path, clips: int = 704, steps: int = 800, lr: float = 1e-3, seed: int = 5,
    device: str = "cpu", compiled: bool = False,
) -> None:  # fmt: skip
    """Make the clips that are missing, then train or go on training; leaves averaged weights in `final/`."""
    recipe = start_recipe(forced, folder / "clips", clips)
    generate_clips(recipe, torch.device(device))
    library = ClipDataset(recipe)
    words = WordEmbedder()
    texts = {prompt: words.encode([prompt])[0] for prompt in set(library.prompts)}
    run = Run(folder)
    model = placed(load_student(forced, dtype=torch.float32), device)
    net = CompiledForward(model) if compiled else model
    optimizer = matrix_optimizer(model)
    ema = {name: value.detach().clone().float() for name, value in model.state_dict().items()}
    state, step = run.load(), 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    losses: list[float] = []
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps, 50, 0.02)
        picked = torch.randint(len(library.paths), (BATCH,), generator=seeded(seed, step)).tolist()
        latents, trajectory = _stacked(library, picked, device)
        text = torch.stack([texts[library.prompts[i]] for i in picked]).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = trajectory_loss(net, latents, trajectory, Conditioning(text), range(BATCH), recipe, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_ema(ema, model, min(0.99, step / (step + 10)))
        losses.append(loss.item())
        if step % 25 == 0 or step == steps:
            run.log(step, loss=sum(losses) / len(losses))
            losses = []
        if run.due() or step == steps:
            run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), ema=ema, step=step)
    model.load_state_dict(ema)
    model.save_pretrained(folder / "final")


def _stacked(library: ClipDataset, picked: list[int], device: str) -> tuple[Tensor, Tensor]:
    found = [library(i, 16) for i in picked]
    latents = torch.stack([x for x, _ in found])
    trajectory = torch.stack([s for _, s in found if s is not None])
    return latents.to(device), trajectory.to(device)
