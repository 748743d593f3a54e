"""Which fused kernels a transformer uses: those that the card can run, and that pass a trial on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from ...errors import InputError
from ...memory import MemoryGeometry, MemoryPolicy
from ...memory.policy import Precision
from ...models.transformer_salt import SaltTransformer3DModel
from ..attention_backend import card_of
from .chosen import NO_KERNELS, Kernels
from .launching import DTYPES, installed, interpreted
from .trials import Pair, fault_of, memory_pairs, norm_pairs, residual_pairs

log = logging.getLogger(__name__)

KernelSetting = Literal["auto", "off"]


def any_memory(policy: MemoryPolicy) -> bool:
    return True


ALL_KERNELS = Kernels(True, True, any_memory)


@dataclass(frozen=True)
class KernelChoice:
    """kernels: those that are used. reason: why these, or why none."""

    kernels: Kernels
    reason: str

    @property
    def used(self) -> bool:
        return self.kernels != NO_KERNELS


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel can run here, as the end of a sentence; None where they can."""
    card = card_of(device)
    if not installed():
        return "Triton is not installed"
    if dtype not in DTYPES:
        found = str(dtype).removeprefix("torch.")
        return f"they compute in bfloat16, float16 or float32, and the student is in {found}"
    if interpreted():
        return None
    if card.capability[0] == 0:
        return f"they need an NVIDIA GPU, and the device is {card.name}"
    if card.capability[0] < 8:
        return f"they need compute capability 8.0, and {card.name} has {card.capability[0]}.{card.capability[1]}"
    return None


@lru_cache
def working_kernels(device: torch.device, dtype: torch.dtype, heads: int, head_dim: int) -> Kernels:
    """The kernels that pass their trial on a device, for a student of this width; others are named in a warning.

    A memory's are tried when one of its kind is first used.
    """
    width = heads * head_dim
    norm = passes("norm and modulation", norm_pairs(device, dtype, width))
    residual = passes("gated residual", residual_pairs(device, dtype, width))

    def memory(policy: MemoryPolicy) -> bool:
        storage = policy.precision, policy.residence == "cpu"
        return memory_works(device, dtype, heads, head_dim, policy.relative, *storage)

    return Kernels(norm, residual, memory)


@lru_cache
def memory_works(
    device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, relative: bool, precision: Precision,
    in_main_memory: bool,
) -> bool:  # fmt: skip
    """Whether the kernels of a kind of memory pass their trial."""
    policy = trial_policy(relative, precision, in_main_memory)
    geometry = MemoryGeometry(layers=1, heads=heads, head_dim=head_dim, height=2, width=3)
    return passes(f"memory {policy}", memory_pairs(policy, geometry, device, dtype))


def trial_policy(relative: bool, precision: Precision, in_main_memory: bool) -> MemoryPolicy:
    """The memory that is tried for its kind."""
    policy = MemoryPolicy.parse("relative:3,window:9" if relative else "sink:3,window:9")
    return policy.with_storage(precision, "cpu" if in_main_memory else "device")


def passes(name: str, pairs: Iterator[Pair]) -> bool:
    """Whether kernels pass their trial; where not, a warning says what is wrong."""
    try:
        fault = fault_of(pairs)
    except InputError as error:  # a precision that this head_dim or this torch does not have
        fault = str(error)
    if fault is not None:
        log.warning("fused kernels: %s is left to torch: %s", name, fault)
    return fault is None


def use_kernels(transformer: SaltTransformer3DModel, kernels: Kernels) -> None:
    """Make a transformer use these kernels from now on, wherever they take its tensors."""
    transformer.kernels = kernels
    for block in transformer.blocks.modules():  # also those that somebody has wrapped
        if (attention := getattr(block, "attn1", None)) is not None:
            block.kernels = attention.processor.kernels = kernels


def set_kernels(transformer: SaltTransformer3DModel, wanted: bool, device: torch.device) -> KernelChoice:
    """Make a transformer use the kernels that work on `device`; none where they are not wanted. Returns the choice."""
    config = transformer.config
    if not wanted:
        choice = KernelChoice(NO_KERNELS, "not asked for")
    elif fault := why_not(device, transformer.dtype):
        choice = KernelChoice(NO_KERNELS, fault)
    else:
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        kernels = working_kernels(device, transformer.dtype, heads, head_dim)
        choice = KernelChoice(kernels, f"those that work on {card_of(device).name}")
    use_kernels(transformer, choice.kernels)
    return choice
