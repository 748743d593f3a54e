"""Models over processes: replicated (DDP) or sharded (FSDP2), behind one call.

A rollout calls the student dozens of times for one backward, while the hooks of both wrappers expect one forward for
one backward. So what is wrapped is a root whose forward runs a function *of* the model: everything in between is, to
the wrapper, one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from salt.acceleration.presets import compile_blocks

Mode = Literal["single", "ddp", "fsdp"]
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
# The others wait while one process writes a checkpoint or makes the last video; by default NCCL gives up in 10 minutes.
PATIENCE = timedelta(hours=4)


def process_state() -> PartialState:
    """This process among the others, joined to them if there are any; on the CPU where there is nothing better."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def own_device() -> torch.device:
    """Where this process computes."""
    return torch.device(process_state().device or "cpu")


class Root(nn.Module):
    """Runs functions of its model inside its own forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


class DistributedModel:
    """A model of the run: call it with a function of the model and its arguments."""

    def __init__(
        self, model: Any, mode: Mode, bf16: bool = False, offload: bool = False, compiled: bool = False
    ) -> None:
        self.mode, self.bf16 = mode, bf16
        if compiled:
            compile_blocks(model, dynamic=False)
        root = Root(model)
        if mode == "fsdp":
            _shard(model, root, bf16, offload)
        trains = any(p.requires_grad for p in model.parameters())
        device = next(model.parameters()).device
        self.root: nn.Module = root
        if mode == "ddp" and trains:
            ids = [device.index] if device.type == "cuda" else None
            self.root = DistributedDataParallel(root, device_ids=ids, broadcast_buffers=False)
        self.model: Any = model

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        device = next(self.model.parameters()).device.type
        # No cache of cast weights: one made without gradient (most of a rollout) would serve, and cut, the exit step's.
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            return self.root(function, *arguments)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """DDP: gradients of all but the last micro-batch stay in this process. FSDP reduces each, as it would keep them
        whole."""
        if isinstance(self.root, DistributedDataParallel) and not last:
            with self.root.no_sync():
                yield
            return
        yield

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def clip(self, limit: float) -> float:
        """Clip gradients to a total norm and return what it was."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # pyright: ignore[reportAttributeAccessIssue]

    def state(self) -> dict[str, Any]:
        """Whole weights on the CPU (on every process's behalf: call it on all of them)."""
        return get_model_state_dict(self.model, options=FULL)

    def load_state(self, state: dict[str, Any]) -> None:
        set_model_state_dict(self.model, state, options=StateDictOptions(full_state_dict=True))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return get_optimizer_state_dict(self.model, optimizer, options=FULL)

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(self.model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _shard(model: nn.Module, root: Root, bf16: bool, offload: bool) -> None:
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    dtypes = (torch.bfloat16, torch.float32) if bf16 else ()
    # Inputs stay as they are: autocast casts what a matrix multiplies, and rotary tables must keep their float32.
    policy = MixedPrecisionPolicy(*dtypes, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    options["offload_policy"] = CPUOffloadPolicy() if offload and device == "cuda" else OffloadPolicy()
    for block in model.blocks:  # pyright: ignore[reportGeneralTypeIssues]
        fully_shard(block, **options)
    # A forward without backward (critic's clips, samples) must leave shards behind, which the average is made of.
    fully_shard(root, reshard_after_forward=True, **options)


def mean_over_processes(value: float, device: torch.device) -> float:
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


class Ema:
    """Exponential moving average of a model's trainable weights, in float32, sharded as the weights are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.shadow: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """The first call copies the weights."""
        for name, p in self.model.named_parameters():
            if not p.requires_grad:
                continue
            if name in self.shadow:
                self.shadow[name].lerp_(p.detach().float(), 1 - self.decay)
            else:
                self.shadow[name] = p.detach().float().clone()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within: the model has the averaged weights (where there are any yet)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.model.named_parameters():
            if name in self.shadow:
                current = p.detach().clone()
                p.copy_(self.shadow[name])
                self.shadow[name] = current.float()
