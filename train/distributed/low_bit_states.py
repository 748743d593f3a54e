"""8-bit optimizer states (torchao's AdamW8bit) in a checkpoint, exactly, from one process or from sharded models.

torchao quantises blocks of 256 values of what a process holds of a weight, where that is 4096 values or more in whole
blocks. A checkpoint keeps every shard's codes and scales as they are, so a run on the same number of shards resumes to
the bit. On another number, values are put together and quantised again: exactly where the shards are whole blocks,
as Wan's matrices are (their rows are multiples of 256), else with 8-bit rounding.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.config.recipe import RecipeError

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # and whether it has a sign
FLOAT_BYTES, BLOCK = 4, 256  # a scale per block


class Quantised(Protocol):
    """torchao's `OptimState8bit`: codes (uint8) in the shape of the weight, scales (float32) one per block."""

    codes: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor: ...


def adamw_8bit(
    parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """torchao's AdamW with 8-bit states. Raises RecipeError without torchao."""
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError("optimisation.optimizer", f"needs torchao ({error}): pip install torchao", "8bit") from error
    return AdamW8bit(parameters, lr=lr, betas=betas, weight_decay=weight_decay)


def is_low_bit(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torchao.")


def low_bit_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """States of all shards on the CPU; every process has to call it, the main one gets them.

    steps: by weight. moments: by weight and moment, the bytes of each shard: codes and scales, or float32 values.
    """
    steps: dict[str, float] = {}
    moments: dict[str, dict[str, list[Tensor]]] = {}
    for name, p in model.named_parameters():
        if state := optimizer.state.get(p):
            steps[name] = float(state["step"])
            moments[name] = {moment: _all_shards(_bytes(_local(state[moment])), p) for moment in MOMENTS}
    return {"steps": steps, "moments": moments}


def load_low_bit_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take this process's part of a `low_bit_state`. Raises RecipeError for states of another optimizer."""
    if "moments" not in state:
        problem = "found a checkpoint with states of bitsandbytes, expected torchao's: choose another run.out"
        raise RecipeError("optimisation.optimizer", problem)
    _create_states(optimizer)
    for name, p in model.named_parameters():
        if name not in state["moments"]:
            optimizer.state.pop(p, None)
            continue
        own = optimizer.state[p]
        own["step"].fill_(state["steps"][name])
        rank, count = _shard_of(p)
        for moment, signed in MOMENTS.items():
            shards, target = state["moments"][name][moment], _local(own[moment])
            if len(shards) == count:
                _fill(target, shards[rank])
            elif (part := _whole_blocks(shards, p.shape, target, rank, count)) is not None:
                _fill(target, part)
            else:
                target.copy_(_chunks(_values(shards, p.shape, signed), count)[rank].to(p.device))


@torch.no_grad()
def _create_states(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer create its states, by a step of no length."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    rate = float(optimizer.param_groups[0]["lr"])
    set_rate(optimizer, 0.0)
    step_eagerly(optimizer)
    set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, which torchao keeps in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def step_eagerly(optimizer: torch.optim.Optimizer) -> None:
    """Step without `torch.compile`, which torchao asks for: its minutes and its compiler buy less than a second."""
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _shard_of(p: Tensor) -> tuple[int, int]:
    """Which shard of a weight this process has, and of how many."""
    if not isinstance(p, DTensor):
        return 0, 1
    along = p.device_mesh.ndim - 1  # the dimension before it, if any, counts copies
    return p.device_mesh.get_local_rank(along), p.device_mesh.size(along)


def _quantised(x: Tensor) -> Quantised | None:
    return cast(Quantised, x) if hasattr(x, "codes") else None


def _bytes(x: Tensor) -> Tensor:
    """A local state as bytes [n]."""
    if (quantised := _quantised(x)) is None:
        return x.detach().float().contiguous().flatten().view(torch.uint8)
    return torch.cat([quantised.codes.flatten(), quantised.scale.view(torch.uint8)])


def _fill(x: Tensor, data: Tensor) -> None:
    """The inverse of `_bytes`, into x."""
    if (quantised := _quantised(x)) is None:
        x.copy_(data.clone().view(torch.float32).view(x.shape))
        return
    count = quantised.codes.numel()
    quantised.codes.copy_(data[:count].view(quantised.codes.shape))
    quantised.scale.copy_(data[count:].clone().view(torch.float32))


def _all_shards(own: Tensor, p: Tensor) -> list[Tensor]:
    """The bytes of all shards of a weight on the CPU; of the processes, the main one alone keeps them."""
    if not isinstance(p, DTensor):
        return [own.cpu()]
    group, count = p.device_mesh.get_group(p.device_mesh.ndim - 1), _shard_of(p)[1]
    size = torch.tensor([own.numel()], device=own.device)
    found = [torch.empty_like(size) for _ in range(count)]
    dist.all_gather(found, size, group=group)
    sizes = [int(n) for n in found]
    padded = own.new_zeros(max(sizes))
    padded[: own.numel()] = own
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded, group=group)
    return [part[:n].cpu() for part, n in zip(parts, sizes, strict=True)] if dist.get_rank() == 0 else []


def _chunks(x: Tensor, count: int) -> list[Tensor]:
    """The parts of a weight that FSDP gives to `count` processes, empty ones at the end where there are not enough."""
    parts = list(x.chunk(count))
    return parts + [x[:0]] * (count - len(parts))


def _whole_blocks(shards: list[Tensor], shape: torch.Size, target: Tensor, rank: int, count: int) -> Tensor | None:
    """The bytes of shard `rank` of `count`, cut out of other shards'; None where blocks would have to be cut."""
    like = torch.empty(shape, device="meta")
    sizes = [part.numel() for part in _chunks(like, len(shards))]
    begin = sum(part.numel() for part in _chunks(like, count)[:rank])
    floats = any(n and data.numel() == FLOAT_BYTES * n for n, data in zip(sizes, shards, strict=True))
    if floats or begin % BLOCK or _quantised(target) is None:
        return None
    codes = torch.cat([data[:n] for n, data in zip(sizes, shards, strict=True)])
    scales = torch.cat([data[n:] for n, data in zip(sizes, shards, strict=True)])
    end, per_block = begin + target.numel(), FLOAT_BYTES / BLOCK
    return torch.cat([codes[begin:end], scales[int(begin * per_block) : int(end * per_block)]])


def _values(shards: list[Tensor], shape: torch.Size, signed: bool) -> Tensor:
    """Values in float32 of all shards' bytes."""
    from torchao.optim.subclass_8bit import OptimState8bit  # pyright: ignore[reportMissingImports]

    parts = []
    for like, data in zip(_chunks(torch.empty(shape, device="meta"), len(shards)), shards, strict=True):
        floats = data.numel() == FLOAT_BYTES * like.numel()
        part = torch.empty(like.shape) if floats else OptimState8bit.zeros(like.shape, signed, BLOCK)
        _fill(part, data)
        parts.append(part if floats else part.dequantize())
    return torch.cat(parts)
