"""Which kernel computes attention: one function chooses it from the card and from what is installed.

All kernels take the KV cache as it lies, [B, tokens, heads, head_dim], without a copy. They are called through
diffusers' dispatcher, which knows their packages.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND
from torch import Tensor, nn

from ..errors import InputError
from ..models.attention import CrossAttention, SelfAttention, attend

log = logging.getLogger(__name__)

Backend = Literal["fa3", "cudnn", "sage", "fa2", "sdpa"]
AttentionSetting = Literal["auto", "fa3", "cudnn", "sage", "fa2", "sdpa"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
DIFFUSERS_NAMES: dict[Backend, AttentionBackendName] = {
    "fa3": AttentionBackendName._FLASH_3,
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
    "sage": AttentionBackendName.SAGE,
    "fa2": AttentionBackendName.FLASH,
    "sdpa": AttentionBackendName.NATIVE,
}
PACKAGES: dict[Backend, str] = {
    "fa3": "FlashAttention 3 (flash_attn_interface)",
    "cudnn": "cuDNN 9 in torch",
    "sage": "sageattention",
    "fa2": "flash-attn",
    "sdpa": "torch",
}
PROCESSORS = (SelfAttention, CrossAttention)
SAGE_CARDS = {(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)}
SAGE_HEADS = {64, 96, 128}
# Relative errors to attention in float32; in bfloat16 and float16 rounding alone is 2e-3, Sage's 8-bit products 2e-2.
EXACT_ERROR, SAGE_ERROR = 1e-2, 8e-2


@dataclass(frozen=True)
class Card:
    """A device as far as attention depends on it. capability: CUDA's, (0, 0) for anything but an NVIDIA GPU."""

    name: str
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class AttentionChoice:
    """name: a `Backend`, or another of diffusers' that the user has set on the transformer. reason: why this one."""

    name: str
    reason: str


def card_of(device: torch.device) -> Card:
    """What a device is. A CUDA device that is only simulated counts as no NVIDIA GPU."""
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip is not None:
        return Card(device.type)
    return Card(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def installed_backends() -> frozenset[Backend]:
    """Back ends whose packages can be imported, whatever the card."""
    found: set[Backend] = {"sdpa"}
    for name in ("fa3", "sage", "fa2"):
        try:
            _check_attention_backend_requirements(DIFFUSERS_NAMES[name])
        except RuntimeError:
            continue
        found.add(name)
    if torch.backends.cudnn.is_available() and (torch.backends.cudnn.version() or 0) >= 90000:
        found.add("cudnn")
    return frozenset(found)


def why_not(name: Backend, card: Card, installed: frozenset[Backend], dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a back end cannot compute attention here, as the end of a sentence; None where it can."""
    if name == "sdpa":
        return None
    major, _ = card.capability
    if major == 0:
        return f"it needs an NVIDIA GPU, and the device is {card.name}"
    needed = {"fa3": major == 9, "sage": card.capability in SAGE_CARDS}.get(name, major >= 8)
    if not needed:
        return f"it does not support {card.name} (compute capability {major}.{card.capability[1]})"
    if name not in installed:
        return f"{PACKAGES[name]} is not installed"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16, and the student is in {str(dtype).removeprefix('torch.')}"
    if name == "sage" and head_dim not in SAGE_HEADS:
        return f"it has heads of 64, 96 or 128, and the student has {head_dim}"
    largest = 128 if name == "cudnn" and major < 9 else 256
    if head_dim % 8 or head_dim > largest:
        return f"it has heads of at most {largest}, in multiples of 8, and the student has {head_dim}"
    return None


def ranked(card: Card, approximate: bool = False) -> tuple[Backend, ...]:
    """Back ends for a card, the fastest first.

    On Hopper and newer, torch's default kernel (of FlashAttention 2's kind) has about half the speed of FA3 and cuDNN;
    before Hopper it is FlashAttention 2. approximate: Sage, whose products are of 8 bits, may be taken.
    """
    order: tuple[Backend, ...] = ("fa3", "cudnn", "fa2", "sdpa") if card.capability[0] >= 9 else ("fa2", "sdpa")
    return ("sage", *order) if approximate else order


def choose(
    card: Card, installed: frozenset[Backend], dtype: torch.dtype, head_dim: int, approximate: bool = False
) -> tuple[Backend, ...]:
    """The back ends that can compute attention here, the first of which is the choice."""
    return tuple(n for n in ranked(card, approximate) if why_not(n, card, installed, dtype, head_dim) is None)


@lru_cache
def trial_fault(name: Backend, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """What is wrong with a back end's result or call on a small input on `device`; None where it is right.

    A package may have been built for other cards or another torch.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 2, head_dim, generator=generator).to(device, dtype) for n in (96, 160, 160))
    try:
        error = attention_error(name, q, k, v)
    except (ImportError, OSError, RuntimeError, ValueError) as failure:
        return f"a trial fails: {failure}".splitlines()[0]
    allowed = SAGE_ERROR if name == "sage" else EXACT_ERROR
    return None if error <= allowed else f"a trial is wrong by {error:.1e}, expected at most {allowed:.0e}"


def attention_error(name: Backend, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Relative error of a back end to attention in float32, for q, k, v [B, S, heads, head_dim]."""
    with torch.no_grad():
        found = attend(q, k, v, DIFFUSERS_NAMES[name]).float()
        scores = torch.einsum("bqnd,bknd->bnqk", q.float(), k.float()) / q.shape[-1] ** 0.5
        expected = torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v.float())
    error = ((found - expected).norm() / expected.norm()).item()
    return error if error == error else float("inf")


def check_backend(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """The back end of a name. Raises InputError where there is no such, or where it cannot compute here."""
    for backend in BACKENDS:
        if backend == name:
            fault = why_not(backend, card_of(device), installed_backends(), dtype, head_dim)
            fault = fault or (trial_fault(backend, device, dtype, head_dim) if backend != "sdpa" else None)
            if fault is not None:
                raise InputError("attention", f"found {name}, which cannot be used: {fault}; expected auto or another")
            return backend
    raise InputError("attention", f"found {name!r}, expected auto, {', '.join(BACKENDS)}")


def set_attention(
    transformer: nn.Module, setting: str, device: torch.device, dtype: torch.dtype, head_dim: int, approximate: bool
) -> AttentionChoice:
    """Make a transformer's attention use a back end, or with `auto` the best one that works on `device`.

    `auto` leaves what the user has set by diffusers' own means (`set_attention_backend`, DIFFUSERS_ATTN_BACKEND).
    """
    processors = [p for m in transformer.modules() if isinstance(p := getattr(m, "processor", None), PROCESSORS)]
    if setting != "auto":
        name, reason = check_backend(setting, device, dtype, head_dim), "as asked for"
    else:
        by_user = {p._attention_backend for p in processors if p._attention_backend not in (None, p.automatic)}
        if by_user:
            names = " and ".join(sorted(str(b.value) for b in by_user if b is not None))
            return AttentionChoice(names, "set on the transformer")
        if DIFFUSERS_ATTN_BACKEND != AttentionBackendName.NATIVE.value:
            return AttentionChoice(DIFFUSERS_ATTN_BACKEND, "DIFFUSERS_ATTN_BACKEND is set")
        name, reason = _automatic(device, dtype, head_dim, approximate)
    for processor in processors:
        processor._attention_backend = processor.automatic = DIFFUSERS_NAMES[name]
    return AttentionChoice(name, reason)


def _automatic(device: torch.device, dtype: torch.dtype, head_dim: int, approximate: bool) -> tuple[Backend, str]:
    card = card_of(device)
    for name in choose(card, installed_backends(), dtype, head_dim, approximate):
        fault = trial_fault(name, device, dtype, head_dim) if name != "sdpa" else None
        if fault is None:
            return name, f"the first that works on {card.name} in {str(dtype).removeprefix('torch.')}"
        log.warning("attention: %s is installed and not used: %s", name, fault)
    return "sdpa", f"nothing else works on {card.name}"
