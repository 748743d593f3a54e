"""A run that stops after its first update and is resumed, beside one that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from train.config.recipe import Recipe
from train.distributed.checkpointing import CheckpointFolder
from train.methods.base import Trainer


def check_resume(
    trainer: type[Trainer], recipe: Recipe, folder: Path, parts: tuple[str, ...], updates: int = 2
) -> dict[str, Any]:
    """The last checkpoint of the run that goes on; asserts that these parts of the other's have the same bits."""

    def run(out: str, *counts: int) -> dict[str, Any]:
        for count in counts:
            opt, to = replace(recipe.optimisation, updates=count), replace(recipe.run, out=str(folder / out))
            trainer(replace(recipe, optimisation=opt, run=to)).run()
        return CheckpointFolder(folder / out / "checkpoints", 2).latest()

    whole, resumed = run("whole", updates), run("parts", 1, updates)
    for part in parts:
        assert all(torch.equal(resumed[part][k], value) for k, value in whole[part].items()), part
    return whole
