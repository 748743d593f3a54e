"""Data parallelism over single-threaded CPU processes, which beats many threads in one process for tiny operations.

Each worker draws its own share of the batch; gradients are averaged, so that all workers take the same step.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from salt.parallel.processes import leave_group


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(model: nn.Module) -> None:
    """Average every gradient over the workers, in one all-reduce. Does nothing with one worker."""
    if world() == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world()
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(piece.view_as(grad))


def _worker(index: int, workers: int, store: str, stage: Callable[..., object], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=index, world_size=workers)
    stage(*arguments)
    leave_group()


def run_workers(workers: int, stage: Callable[..., object], *arguments: object) -> None:
    """Call `stage(*arguments)` in `workers` processes, or in this one if `workers` is 1."""
    if workers == 1:
        stage(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (workers, str(Path(folder) / "store"), stage, arguments), nprocs=workers)
