"""Processes of a run: how they are used (one, DDP, FSDP), this process's device, and means over all of them."""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh

from salt.errors import InputError
from salt.io.launcher import process_count
from salt.parallel.heads import HeadGroup
from train.config.model_configs import WAN_14B, backbones
from train.config.recipe import Recipe, RecipeError

Mode = Literal["single", "ddp", "fsdp"]
# Processes wait while one of them writes a checkpoint or the last video. NCCL's default is 10 minutes.
COLLECTIVE_TIMEOUT = timedelta(hours=4)


def process_state() -> PartialState:
    """This process's rank and device, joined to the other processes if there are any; the CPU where there is no GPU."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=COLLECTIVE_TIMEOUT)


def process_device() -> torch.device:
    """The device that this process computes on."""
    return torch.device(process_state().device or "cpu")


def resolve_mode(requested: Literal["auto", "single", "ddp", "fsdp"]) -> Mode:
    """How several processes are used: as requested, or as accelerate's configuration says.

    Raises InputError for a mode that does not fit the number of processes.
    """
    several = process_count() > 1
    if requested != "auto" and several == (requested == "single"):
        expected = "ddp or fsdp" if several else "auto or single (accelerate launch or torchrun starts more)"
        raise InputError("mode", f"found {requested} with {process_count()} process(es), expected {expected}")
    if requested != "auto":
        return requested
    if not several:
        return "single"
    return "fsdp" if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else "ddp"


def check_mode(recipe: Recipe, mode: Mode) -> None:
    """Raise InputError for what cannot work in this mode, and for a missing optimizer."""
    if recipe.optimisation.optimizer == "8bit" and not importlib.util.find_spec("torchao"):
        raise RecipeError("optimisation.optimizer", "found 8bit without torchao: pip install torchao, or use fused")
    _check_sequence(recipe, mode)
    shard = recipe.optimisation.shard
    if mode != "fsdp":
        if shard:
            raise RecipeError("optimisation.shard", "has no effect without --mode fsdp", shard)
        return
    if shard and process_count() % shard:
        problem = f"found {shard}, expected a divisor of the {process_count()} processes"
        raise RecipeError("optimisation.shard", problem)
    if torch.__version__ < "2.8":  # compared as versions are
        # Weights of one block may be of two dtypes, which FSDP2 accepts only since then: a teacher's norms are float32.
        raise InputError("mode", f"found fsdp with torch {torch.__version__}, expected torch 2.8 or newer, or ddp")


def _check_sequence(recipe: Recipe, mode: Mode) -> None:
    size, count = recipe.optimisation.sequence, process_count()
    if size < 2:
        return
    if mode == "single":
        raise RecipeError("optimisation.sequence", "has no effect in one process", size)
    if count % size:
        raise RecipeError("optimisation.sequence", f"found {size}, expected a divisor of the {count} processes")
    refused = {"optimisation.compile": recipe.optimisation.compile, "loss.adversarial": recipe.loss.adversarial}
    for field, value in refused.items():
        if value:
            raise RecipeError(field, "is not supported by optimisation.sequence", value)
    for name, config in backbones(recipe).items():
        heads = config.get("num_attention_heads", WAN_14B["num_attention_heads"])
        if heads % size:
            fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
            problem = f"found {size} for {heads} heads ({name}), expected a number that divides them: {fitting}"
            raise RecipeError("optimisation.sequence", problem)


def clip_share(recipe: Recipe) -> tuple[int, int]:
    """Which share of the global batch is this process's, and how many shares there are.

    Processes that compute clips together have the same one.
    """
    state, together = process_state(), recipe.optimisation.sequence or 1
    return state.process_index // together, state.num_processes // together


def sequence_group(recipe: Recipe) -> HeadGroup | None:
    """The processes that compute clips together with this one; every process has to call it."""
    size, state = recipe.optimisation.sequence, process_state()
    if size < 2:
        return None
    mesh = init_device_mesh(
        process_device().type, (state.num_processes // size, size), mesh_dim_names=("clips", "tokens")
    )
    return HeadGroup(mesh.get_local_rank("tokens"), size, mesh.get_group("tokens"))


def mean_over_processes(value: float, device: torch.device) -> float:
    """The mean of a number over all processes; every process has to call it."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
