"""The memory estimate as a table, and the check that a recipe fits the memory of a GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from train.config.recipe import Recipe, RecipeError
from train.distributed.launch import Mode
from train.memory_estimate.estimate import GIB, estimate, estimates


def table(recipe: Recipe, processes: Sequence[int] = (1, 8, 64), modes: Sequence[Mode] = ("fsdp", "ddp")) -> Table:
    """GiB per GPU, a column per number of GPUs; parts below 1 % of every total are summed up."""
    found = estimates(recipe, processes, modes)
    title = f"{recipe.name}: GiB per GPU, estimated"
    columns = Table(title=title, title_style="bold", title_justify="left")
    columns.add_column("")
    for one in found:
        columns.add_column(f"{one.processes} GPU{'s' * (one.processes > 1)}\n{one.mode}", justify="right")
    names = list(dict.fromkeys(name for one in found for name in one.parts))
    large = [n for n in names if any(one.parts.get(n, 0) > one.total / 100 for one in found)]
    for name in large:
        columns.add_row(name, *(gib(one.parts.get(name, 0)) for one in found))
    columns.add_row("the rest", *(gib(one.total - sum(one.parts.get(n, 0) for n in large)) for one in found))
    columns.add_section()
    columns.add_row("total", *(gib(one.total) for one in found), style="bold")
    columns.add_row("peak phase", *(one.peak for one in found))
    columns.add_row("RAM of the first process", *(gib(one.ram) for one in found))
    return columns


def gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def check_memory(recipe: Recipe, processes: int, mode: Mode, available_bytes: int) -> None:
    """Raise RecipeError, in one line, where a GPU has less memory than the recipe needs."""
    one = estimate(recipe, processes, mode)
    if one.total <= available_bytes:
        return
    parts = sorted(one.parts.items(), key=lambda part: -part[1])
    biggest = ", ".join(f"{name} {gib(size)}" for name, size in parts[:5])
    raise RecipeError(
        "GPU memory",
        f"is too small for {recipe.name}: it needs {gib(one.total)} GiB per GPU ({biggest}), "
        f"found {gib(available_bytes)} GiB; what would help: {', '.join(remedies(recipe, mode))}",
    )


def remedies(recipe: Recipe, mode: Mode) -> list[str]:
    """Settings that would lower the recipe's memory, as `key=value`."""
    settings, opt = recipe.models, recipe.optimisation
    possible = {
        "models.checkpointing=true": not settings.checkpointing,
        "models.keep=input": settings.checkpointing and recipe.saved_activations != "input",
        "models.offload=true": recipe.stage in ("distill", "cd") and not settings.offload and mode != "fsdp",
        "optimisation.optimizer=8bit": opt.optimizer != "8bit" and mode != "fsdp",
        "models.lora_rank=64": not settings.lora_rank,
        "optimisation.micro_batch=1": opt.micro_batch > 1,
        "loss.align=none": recipe.loss.align != "none",
        "fsdp over several GPUs": mode != "fsdp",
        "more GPUs": mode == "fsdp",
    }
    return [remedy for remedy, helps in possible.items() if helps]


def available_memory(device: torch.device) -> int:
    """Free bytes of a GPU, or of the machine's RAM."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
