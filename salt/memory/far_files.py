"""A `far` memory in a memory file: the tensors of its context, and how many frames they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from safetensors import safe_open
from torch import Tensor

from ..io.fields import Between, Index, shown
from .far import STRIDE, FarContext, FarMemory
from .store import MemoryGeometry

LATENTS = "far.latents"
Frames = Annotated[int, Between(1, 10**4)]


@dataclass(frozen=True)
class FarDescription:
    """Latent frames in large patches, and of the blocks after them."""

    far: Index
    blocks: tuple[Frames, ...]

    def check(self, window: int, held: int) -> None:
        """Raise ValueError unless they are the frames that a memory holds, in at most `window` blocks."""
        if self.far + sum(self.blocks) != held or not 1 <= len(self.blocks) <= window:
            found = f"{self.far} and blocks of {shown(self.blocks)}"
            raise ValueError(f"far: found {found}, expected {held} latent frames, the last in 1 to {window} blocks")


def far_tensors(memory: FarMemory, prefix: str) -> dict[str, Tensor]:
    """The context's tensors by name."""
    context = memory.context
    assert context.latents is not None
    layers = {
        f"{prefix}layers.{i}.{name}": x.contiguous().cpu()
        for i, layer in enumerate(context.layers)
        for name, x in zip("kv", layer, strict=True)
    }
    return layers | {f"{prefix}{LATENTS}": context.latents.contiguous().cpu()}


def far_context(
    file: safe_open,
    description: FarDescription,
    geometry: MemoryGeometry,
    dtype: torch.dtype,
    device: torch.device,
    prefix: str,
    path: str | Path,
) -> FarContext:
    """The context in an open file. Raises ValueError, naming the tensor, for one that is missing or does not fit."""
    tensors = dict(_read(file, description, geometry, prefix, path))
    names = [f"{prefix}layers.{i}" for i in range(geometry.layers)]
    layers = tuple((tensors[f"{n}.k"].to(device, dtype), tensors[f"{n}.v"].to(device, dtype)) for n in names)
    return FarContext(layers, description.far, description.blocks, tensors[f"{prefix}{LATENTS}"].to(device))


def _read(
    file: safe_open, description: FarDescription, geometry: MemoryGeometry, prefix: str, path: str | Path
) -> Iterator[tuple[str, Tensor]]:
    g, present, near = geometry, set(file.keys()), sum(description.blocks)
    tokens = description.far * (g.height // STRIDE) * (g.width // STRIDE) + near * g.tokens
    shapes: dict[str, tuple[int | None, ...]] = {
        f"{prefix}layers.{i}.{name}": (g.batch, tokens, g.heads, g.head_dim) for i in range(g.layers) for name in "kv"
    }
    shapes[f"{prefix}{LATENTS}"] = (g.batch, None, near, None, None)
    for key, expected in shapes.items():
        found = tuple(file.get_slice(key).get_shape()) if key in present else ()
        alike = len(found) == len(expected) and all(b in (None, a) for a, b in zip(found, expected, strict=True))
        if not alike:
            wanted = ["any" if n is None else n for n in expected]
            raise ValueError(f"{path}: {key}: found {list(found) or 'nothing'}, expected shape {wanted}")
    for key in shapes:
        tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {key}: found {tensor.dtype}, expected floating-point numbers")
        yield key, tensor
