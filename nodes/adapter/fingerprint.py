"""Host 1: what tells two MODELs apart, so that a memory written by one is not read by another.

The same whether the MODEL is loaded, offloaded or never used: LoRA and other weight patches count as themselves, and
where core has already merged them into the weights, the weight before the merge is read from core's backup.
"""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

SAMPLES = 16
# By core's own sign of what a MODEL's patches are. Reading hundreds of weights off a device takes longer than a step.
KNOWN: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()


def fingerprint(model: Any) -> str:
    """16 hex digits of a MODEL: names, shapes and 16 numbers of every weight of the transformer, and its patches.

    Worked out once for the same weights with the same patches.
    """
    known = KNOWN.setdefault(model.model, {})
    if model.patches_uuid not in known:
        known[model.patches_uuid] = worked_out(model)
    return known[model.patches_uuid]


def worked_out(model: Any) -> str:
    digest = hashlib.sha256()
    base = model.model
    for name, weight in sorted(base.diffusion_model.named_parameters()):
        key = f"diffusion_model.{name}"
        kept = model.backup.get(key)
        _add(digest, name)
        _add(digest, weight if kept is None else kept.weight)
    for key, patches in sorted(model.patches.items(), key=lambda item: str(item[0])):
        _add(digest, str(key))
        _add(digest, patches)
    return digest.hexdigest()[:16]


def _add(digest: Any, value: Any) -> None:
    """Feed a weight, or whatever a patch is made of: tensors, numbers, text, containers, adapters with `weights`."""
    if isinstance(value, Tensor):
        digest.update(_sample(value))
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _add(digest, part)
    elif hasattr(value, "weights"):  # comfy.weight_adapter: LoRA, LoHa, LoKr, ...
        digest.update(type(value).__name__.encode())
        _add(digest, value.weights)
    elif value is None or isinstance(value, (str, int, float, bool)):
        digest.update(repr(value).encode())
    else:  # a function that a patch is passed through: its name has to do
        digest.update(getattr(value, "__qualname__", type(value).__name__).encode())


def _sample(weight: Tensor) -> bytes:
    raw = weight.detach()
    # Quantised wrappers (core's, GGUF's) show another shape than they store: the stored numbers are what is sampled.
    raw = getattr(raw, "_qdata", raw)
    if type(raw) is not Tensor:
        raw = raw.as_subclass(Tensor)
    flat = raw.flatten()
    few = flat[:: max(flat.numel() // SAMPLES, 1)][:SAMPLES]
    return f"{tuple(raw.shape)}".encode() + few.cpu().to(torch.float32).numpy().tobytes()
