"""The training loop that the transformer stages share: teacher, teacher forcing and ODE regression.

Resumable after every save; CPU workers share each batch; averaged weights are the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from salt.models.transformer_salt import SaltTransformer3DModel
from train.distributed.ema import update_average
from train.experiments.tiny.cpu_workers import average_gradients, rank, world
from train.experiments.tiny.muon import Muon
from train.experiments.tiny.run_state import Run, seeded, warmup_cosine


@dataclass(frozen=True)
class ClipPhase:
    """Steps on clips of one length, in latent frames. lr_end: the factor on `lr` at the last step."""

    frames: int
    batch: int
    steps: int
    lr: float
    lr_end: float


@dataclass(frozen=True)
class LoopSettings:
    """seed: of the data. warmup: steps at the start of each phase. ema: decay. log_every: steps."""

    seed: int
    warmup: int
    ema: float
    log_every: int


@dataclass(frozen=True)
class LoopStep:
    """One step of one worker. step: over all phases. clips: this worker's. generator: of the step's random draws."""

    step: int
    phase: ClipPhase
    clips: int
    generator: torch.Generator


def train_phases(
    folder: Path,
    model: SaltTransformer3DModel,
    phases: tuple[ClipPhase, ...],
    loss_of: Callable[[LoopStep], Tensor],
    settings: LoopSettings,
    device: str,
) -> None:
    """Train or resume `model` in `folder`; writes the averaged weights to `folder`/final.

    loss_of runs under bfloat16 autocast. Rank 0 logs and saves; each worker draws its own clips.
    """
    run = Run(folder)
    optimizer = matrix_optimizer(model)
    average: dict[str, Tensor] = {}
    update_average(average, model.named_parameters(), 1.0)
    state, step = run.load(), 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average = {name: value.to(device) for name, value in state["ema"].items()}
        step = state["step"]
    total = sum(phase.steps for phase in phases)
    losses: list[float] = []
    while step < total:
        phase, phase_step = phase_at(phases, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * warmup_cosine(phase_step, phase.steps, settings.warmup, phase.lr_end)
        generator = seeded(settings.seed, step * world() + rank())
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(LoopStep(step, phase, max(phase.batch // world(), 1), generator))
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_average(average, model.named_parameters(), min(settings.ema, step / (step + 10)))
        losses.append(loss.item())
        if rank() == 0 and (step % settings.log_every == 0 or step == total):
            frames = {"frames": phase.frames} if len(phases) > 1 else {}
            run.log(step, loss=sum(losses) / len(losses), **frames)
            losses = []
        if rank() == 0 and (run.due() or step == total):
            run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), ema=average, step=step)
    if rank() == 0:
        model.load_state_dict(average)
        model.save_pretrained(folder / "final")


def phase_at(phases: tuple[ClipPhase, ...], step: int) -> tuple[ClipPhase, int]:
    """The phase of `step` and the step's number within it. Raises ValueError past the last phase."""
    for phase in phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError(f"step {step} is past the last phase")


def matrix_optimizer(model: nn.Module) -> Muon:
    """Muon for the transformer blocks' matrices and the text layer that reads 4096 values; Adam for the rest."""
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and (name.startswith("blocks.") or "text_embedder.linear_1" in name)
    ]
    chosen = {id(p) for p in matrices}
    return Muon([p for p in model.parameters() if id(p) not in chosen], matrices, scale=0.4)
