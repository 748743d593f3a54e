"""The processes that a launcher has started for one stream: joined, with one error message for all of them."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from ..acceleration.presets import AccelerationPreset
from ..errors import InputError
from ..io.interruption import exit_code
from ..models.anyflow import AnyFlowTransformer3DModel
from ..models.attention import SelfAttention
from ..models.transformer_salt import SaltTransformer3DModel
from .heads import HeadGroup

FAILED = 2  # exit code of a command that ended in an error
FIRST, PRINTED = "salt/first error", "salt/printed"  # keys of the store that the launcher's processes share
PRINT_TIMEOUT = timedelta(seconds=5)  # that the other processes wait for the first error to be printed


@contextmanager
def joined(timeout: timedelta) -> Iterator[HeadGroup]:
    """While open, this process is one of the launcher's, which compute one stream.

    An error in any of them ends all: the first one is raised as it is, the other processes end without a word. Only the
    main process logs. timeout: for an exchange between them.
    """
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    if rank:
        logging.getLogger("salt").setLevel(logging.ERROR)
    try:
        yield HeadGroup(rank, size)
    except KeyboardInterrupt as interruption:
        if rank or _has_failed(store):
            raise SystemExit(exit_code(interruption)) from None
        raise
    except (ValueError, OSError, RuntimeError):
        if not _is_first(store, rank):
            raise SystemExit(FAILED) from None
        raise
    leave_group()


def leave_group() -> None:
    """Leave the process group that this process has joined; nothing without one.

    With torch 2.6, the group's own destructor keeps Python's lock (GIL) while it waits for gloo's threads. A thread
    that still has to free tensors of the last exchange waits for that lock, for ever. So gloo's object is kept here
    until the group is gone: its destructor gives the lock up while it waits.
    """
    if not dist.is_initialized():
        return
    kept = _gloo(dist.group.WORLD)
    dist.destroy_process_group()
    del kept


def _gloo(group: dist.ProcessGroup | None) -> object:
    """What exchanges tensors of main memory in a process group; None where it exchanges others only."""
    cpu = torch.device("cpu")
    return group._get_backend(cpu) if group is not None and cpu in group._device_types else None


def _is_first(store: dist.Store, rank: int) -> bool:
    """Whether no other process has failed before; the others wait until this one has printed its error."""
    first = str(rank).encode()
    with suppress(RuntimeError):  # where the process that held the store is gone, which has printed its error
        first = store.compare_set(FIRST, "", str(rank))
        if first == str(rank).encode():
            atexit.register(_set_printed, store)
            return True
        store.wait([PRINTED], PRINT_TIMEOUT)
    return first == b"0" and rank == 0


def _set_printed(store: dist.Store) -> None:
    with suppress(RuntimeError):
        store.set(PRINTED, "1")


def _has_failed(store: dist.Store) -> bool:
    """Whether some process has failed, after which the launcher ends the others."""
    with suppress(RuntimeError):
        return store.check([FIRST])
    return True


def split_heads(transformer: SaltTransformer3DModel, acceleration: AccelerationPreset, group: HeadGroup) -> None:
    """Compute self-attention of a student on the processes of `group` together from now on; memories hold their heads.

    Raises InputError for a model, a number of heads or a preset that cannot.
    """
    if isinstance(transformer, AnyFlowTransformer3DModel):
        raise InputError("parallel", "found AnyFlow-FAR, expected a causal Wan student")
    if acceleration.compiled or acceleration.weights != "bf16":
        raise InputError("prefer", "cannot be combined with `parallel` unless it is exact or low memory")
    set_head_group(transformer, group)


def set_head_group(transformer: SaltTransformer3DModel, group: HeadGroup) -> None:
    """Let a group compute a transformer's self-attention. Raises InputError for heads that it cannot share."""
    group.check_heads(transformer.config.num_attention_heads)
    transformer.head_group = group
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, SelfAttention):
            processor.head_group = group
