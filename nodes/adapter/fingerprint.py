"""A digest that tells two MODELs apart, so that a memory written by one is not read by another.

It is the same whether the MODEL is loaded, offloaded or has never been used: LoRA and other weight patches count as
themselves, and where ComfyUI has already merged them into the weights, the weight before the merge is read from its
backup.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...salt.models.fingerprint import HEX_DIGITS, evenly_spaced, stored_values

if TYPE_CHECKING:
    from hashlib import _Hash
    from uuid import UUID

    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

MAX_LISTED = 3  # patches of one strength, in messages
# By the id that ComfyUI gives a MODEL's set of patches. Reading hundreds of weights off a device takes longer than a
# denoising step.
_known: WeakKeyDictionary[BaseModel, dict[UUID, str]] = WeakKeyDictionary()


def fingerprint(model: ModelPatcher) -> str:
    """16 hex digits of a MODEL: names, shapes and 16 numbers of every weight of the transformer, and its patches; then
    what is known of the patches, for messages only (`salt.memory.cache.digits`).

    Computed once for the same weights with the same patches.
    """
    known = _known.setdefault(model.model, {})
    if model.patches_uuid not in known:
        known[model.patches_uuid] = compute_fingerprint(model)
    return known[model.patches_uuid]


def compute_fingerprint(model: ModelPatcher) -> str:
    digest = hashlib.sha256()
    base = model.model
    for name, weight in sorted(base.diffusion_model.named_parameters()):
        unmerged = model.backup.get(f"diffusion_model.{name}")
        _update(digest, name)
        _update(digest, weight if unmerged is None else unmerged.weight)
    for key, patches in sorted(model.patches.items(), key=lambda item: str(item[0])):
        _update(digest, str(key))
        _update(digest, patches)
    return digest.hexdigest()[:HEX_DIGITS] + describe_patches(model)


def describe_patches(model: ModelPatcher) -> str:
    """` with a LoRA or other patch (40 weights at 0.8)`; empty where there is none.

    ComfyUI keeps no names of LoRAs; this is their strength and how many weights they change.
    """
    counts: Counter[float] = Counter()
    for patches in model.patches.values():
        for strength, *_ in patches:
            counts[float(strength)] += 1
    each = [f"{count} weight{'s' * (count > 1)} at {strength:g}" for strength, count in sorted(counts.items())]
    if len(each) > MAX_LISTED:
        each = [*each[:MAX_LISTED], f"{len(each) - MAX_LISTED} more"]
    return f" with a LoRA or other patch ({', '.join(each)})" if each else ""


def _update(digest: _Hash, value: object) -> None:
    """Add a weight, or a part of a patch: tensors, numbers, text, containers, adapters with `weights`."""
    if isinstance(value, Tensor):
        digest.update(_sample(value))
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _update(digest, part)
    elif hasattr(value, "weights"):  # comfy.weight_adapter: LoRA, LoHa, LoKr, ...
        digest.update(type(value).__name__.encode())
        _update(digest, getattr(value, "weights", None))
    elif value is None or isinstance(value, (str, int, float, bool)):
        digest.update(repr(value).encode())
    else:  # a function that the patched weight goes through: its name has to do
        digest.update(getattr(value, "__qualname__", type(value).__name__).encode())


def _sample(weight: Tensor) -> bytes:
    """Shape of what a weight stores, and evenly spaced numbers of it as float32."""
    stored = stored_values(weight)
    return f"{tuple(stored.shape)}".encode() + evenly_spaced(stored).cpu().to(torch.float32).numpy().tobytes()
