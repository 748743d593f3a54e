"""A model in training with 8-bit optimizer states, in one process or sharded over several, for tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from salt.parallel.processes import leave_group
from tests.helpers import tiny_recipes
from tests.helpers.head_processes import free_port
from train.distributed.launch import Mode
from train.distributed.low_bit_states import adamw_8bit, step_eagerly
from train.distributed.parallel import DistributedModel

RATE = 1e-3


class LowBitRun:
    """A model whose matrices are whole blocks of 256, and its optimizer. bytes: of the optimizer's states here."""

    def __init__(self, mode: Mode) -> None:
        small = dict(num_attention_heads=2, attention_head_dim=128, ffn_dim=512, num_layers=1, text_dim=32)
        self.model = DistributedModel(tiny_recipes.model(1, **small), mode)
        self.optimizer = adamw_8bit(self.model.parameters(), RATE, (0.5, 0.999), 0.01)

    def update(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        x, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 4, 4), (1, 3, 32)))
        loss = self.model(lambda model: model(x, torch.tensor([500.0]), text, return_dict=False)[0].square().mean())
        loss.backward()
        step_eagerly(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def states(self) -> dict[str, Any]:
        """As a checkpoint has them."""
        states = {"model": self.model.state(), "optimizer": self.model.optimizer_state(self.optimizer)}
        return {**states, "model": {name: value.clone() for name, value in states["model"].items()}}

    def load(self, states: dict[str, Any]) -> LowBitRun:
        self.model.load_state(states["model"])
        self.model.load_optimizer_state(self.optimizer, states["optimizer"])
        return self

    @property
    def bytes(self) -> int:
        found = 0
        for state in self.optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                local = state[name].to_local() if hasattr(state[name], "to_local") else state[name]
                parts = (local.codes, local.scale, local.qmap) if hasattr(local, "codes") else (local,)
                found += sum(part.nbytes for part in parts)
        return found


def process(rank: int, size: int, port: int, folder: Path) -> None:
    """Three updates; after the second one the states are saved, and a second model goes on from them."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    run = LowBitRun("fsdp")
    run.update(0)
    run.update(1)
    saved = run.states()
    if rank == 0:
        torch.save(saved, folder / "saved.pt")
    dist.barrier()
    resumed = LowBitRun("fsdp").load(torch.load(folder / "saved.pt", weights_only=True))
    for one, name in ((run, "whole"), (resumed, "resumed")):
        one.update(2)
        states = one.states()
        if rank == 0:
            torch.save(states, folder / f"{name}.pt")
    (folder / f"{rank}.bytes").write_text(str(run.bytes))
    leave_group()


def run(size: int, folder: Path, function: Callable[..., None] = process) -> None:
    torch.multiprocessing.start_processes(function, (size, free_port(), folder), nprocs=size, start_method="spawn")
