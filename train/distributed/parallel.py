"""Models over processes: replicated (DDP) or sharded (FSDP2), called through one wrapper.

A rollout calls the student dozens of times for one backward, while the hooks of DDP and FSDP expect one forward for one
backward. So the wrapped module is a root whose forward runs a function of the model: to DDP and FSDP, everything that
the function does is one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from salt.acceleration.presets import compile_blocks
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.parallel.heads import HeadGroup
from salt.parallel.processes import set_head_group
from train.distributed.launch import Mode
from train.distributed.low_bit_states import is_low_bit, load_low_bit_state, low_bit_state

UNSHARDED_ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Root(nn.Module):
    """Runs functions of its model inside its own forward."""

    def __init__(self, model: SaltTransformer3DModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Result], *arguments: object, **options: object) -> Result:
        return function(self.model, *arguments, **options)


class DistributedModel:
    """A transformer of the run. `model(function, ...)` is function(transformer, ...) as one forward, in autocast.

    bf16: bfloat16 autocast, and FSDP gathers weights in bfloat16 and reduces gradients in float32.
    compiled: transformer blocks are compiled in place. shard: processes that share one copy (FSDP), 0 for all.
    sequence: processes that compute its forwards together.
    """

    def __init__(
        self, model: SaltTransformer3DModel, mode: Mode, bf16: bool = False, compiled: bool = False, shard: int = 0,
        sequence: HeadGroup | None = None,
    ) -> None:  # fmt: skip
        self.mode, self.bf16 = mode, bf16
        if sequence is not None:
            set_head_group(model, sequence)
        if compiled:
            compile_blocks(model, dynamic=False)
        root = Root(model)
        if mode == "fsdp":
            _shard(model, root, bf16, shard)
        trains = any(p.requires_grad for p in model.parameters())
        device = next(model.parameters()).device
        self.root: nn.Module = root
        if mode == "ddp" and trains:
            ids = [device.index] if device.type == "cuda" else None
            self.root = DistributedDataParallel(root, device_ids=ids, broadcast_buffers=False)
        self.model = model

    def __call__(
        self,
        function: Callable[Concatenate[SaltTransformer3DModel, Parameters], Result],
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        device = next(self.model.parameters()).device.type
        # No cache of cast weights: a cast without gradient (most of a rollout) would be reused, and cut, at the exit.
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            return self.root(function, *arguments, **options)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around one micro-batch. DDP reduces gradients after the last only; FSDP, which shards them, after each."""
        if isinstance(self.root, DistributedDataParallel) and not last:
            with self.root.no_sync():
                yield
            return
        yield

    def parameters(self) -> list[nn.Parameter]:
        """The trainable ones."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def clip(self, limit: float) -> float:
        """Clip gradients to a total norm and return the norm before."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def state(self) -> dict[str, Any]:
        """Unsharded weights on the CPU; every process has to call it."""
        return get_model_state_dict(self.model, options=UNSHARDED_ON_CPU)

    def load_state(self, state: dict[str, Any]) -> None:
        set_model_state_dict(self.model, state, options=StateDictOptions(full_state_dict=True))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Unsharded state on the CPU; every process has to call it."""
        if is_low_bit(optimizer):
            return low_bit_state(self.model, optimizer)
        return get_optimizer_state_dict(self.model, optimizer, options=UNSHARDED_ON_CPU)

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        if is_low_bit(optimizer):
            load_low_bit_state(self.model, optimizer, state)
            return
        set_optimizer_state_dict(self.model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _shard(model: SaltTransformer3DModel, root: Root, bf16: bool, shard: int) -> None:
    processes, device = dist.get_world_size(), next(model.parameters()).device.type
    if shard in (0, processes):
        mesh = init_device_mesh(device, (processes,))
    else:  # copies along the first dimension, the shards of each along the second
        mesh = init_device_mesh(device, (processes // shard, shard), mesh_dim_names=("copy", "shard"))
    dtypes = (torch.bfloat16, torch.float32) if bf16 else ()
    # Inputs keep their dtype: autocast casts what a matrix multiplies, and rotary tables stay float32.
    policy = MixedPrecisionPolicy(*dtypes, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # A forward without backward (critic's clips, samples) must leave sharded weights, which the average reads.
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
