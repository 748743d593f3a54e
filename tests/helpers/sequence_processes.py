"""Losses and gradients of distillation, in one process or in processes that compute each clip together, for tests."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from salt.parallel.processes import leave_group
from tests.helpers import tiny_recipes
from train.config.recipe import Recipe
from train.distributed.launch import Mode
from train.losses.semigroup import grid_triples
from train.methods.base import Learner
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout.random_draws import UpdateDraws


def recipe(folder: Path, name: str, sequence: int, updates: int = 2) -> Recipe:
    """Three tokens a frame, which two processes do not share evenly."""
    return tiny_recipes.recipe(
        folder, rollout=dict(height=2, width=6), run=dict(out=str(folder / name), save_every=1),
        optimisation=dict(batch=2, micro_batch=1, updates=updates, sequence=sequence, critic_per_generator=1),
    )  # fmt: skip


def measured(trainer: SCDMDTrainer) -> dict[str, Tensor]:
    """The teacher's forward, and losses and gradients of critic and student, with all terms of its loss."""
    recipe, found = trainer.recipe, {}
    batch = trainer.prompts.batch(0, range(2), "generator")
    x = torch.randn(2, 16, 6, 2, 6, generator=torch.Generator().manual_seed(5))
    steps, text = torch.tensor([700.0, 20.0]), batch.conditioning.text
    with torch.no_grad():
        found["teacher"] = trainer.teacher(x, steps, text, return_dict=False)[0]
    triple = grid_triples(recipe.schedule(8), 3)[0][1][0]
    draws = {
        "semigroup": UpdateDraws(recipe.schedule(8), 3, triple, 3.0),
        "align": UpdateDraws(recipe.schedule(4), 1, None, 3.0),
    }
    losses = [
        (name, trainer.student, lambda batch, at=at: trainer.generator_loss(batch, at, 0)) for name, at in draws.items()
    ]
    critic = ("critic", trainer.critic, lambda batch: trainer.critic_loss(batch, draws["align"], 0))
    for name, learner, loss_of in [critic, *losses]:
        for batch in trainer.micro_batches(learner, 0, "generator"):
            loss, parts = loss_of(batch)
            assert name in parts
            (loss / trainer.accumulation_steps).backward()
            found[f"{name}, loss {batch.samples}"] = loss.detach()
        found |= {f"{name}, {key}": value for key, value in gradients(learner).items()}
        learner.optimizer.zero_grad(set_to_none=True)
    return found


def gradients(learner: Learner) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in learner.model.model.named_parameters() if p.grad is not None}
    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in found.items()}


def process(rank: int, size: int, port: int, folder: Path, modes: tuple[Mode, ...]) -> None:
    """Measure in each mode; then a run of two updates, resumed between them."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for mode in modes:
        found = measured(SCDMDTrainer(recipe(folder, mode, size), mode))
        if rank == 0:
            torch.save(found, folder / f"{mode}.pt")
    for updates in (1, 2):
        SCDMDTrainer(recipe(folder, "resumed", size, updates), modes[0]).run()
    leave_group()
