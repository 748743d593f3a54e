"""The frozen teacher of a run, as the losses call it."""

from __future__ import annotations

import torch
from torch import nn

from salt.parallel.heads import HeadGroup
from train.config.recipe import Recipe
from train.distributed.launch import Mode
from train.distributed.offloading import OffloadedModel
from train.distributed.parallel import DistributedModel
from train.models import build_teacher


def placed_teacher(
    recipe: Recipe, device: torch.device, mode: Mode, sequence: HeadGroup | None = None
) -> OffloadedModel:
    """The recipe's teacher: on the device, sharded there (FSDP), or with `models.offload` on the CPU between calls.

    sequence: as for `DistributedModel`.
    """
    opt, offload = recipe.optimisation, recipe.models.offload
    teacher = build_teacher(recipe)
    if not offload:
        nn.Module.to(teacher, device)
    bf16 = opt.precision == "bf16"
    wrapped = DistributedModel(teacher, "single" if offload else mode, bf16, opt.compile, opt.shard, sequence)
    return OffloadedModel(wrapped, device, offload)
