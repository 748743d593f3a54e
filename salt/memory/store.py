"""Storage of keys and values: fixed buffers per layer, in the model's dtype or quantised, on the device or the CPU.

Layout of every buffer: [B, slots, tokens, heads, head_dim]; a slot holds one latent frame. Quantised stores have codes
there, and further buffers with the scales of every token and head (`quantization.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from ..io.fields import Count
from .policy import CYCLE_FRAMES, MemoryPolicy, Precision
from .quantization import dequantise_into, quantise, row_bytes, row_layout, storage_dtype

TOKEN_PIXELS = 16  # rows and columns of a patch token: Wan's autoencoder takes 8, a patch 2 of those


@dataclass(frozen=True)
class MemoryGeometry:
    """Shape of a latent frame's keys and values: `height` x `width` patch tokens in each of `layers` layers."""

    layers: Count
    heads: Count
    head_dim: Count
    height: Count
    width: Count
    batch: Count = 1

    @property
    def tokens(self) -> int:
        """Tokens per latent frame."""
        return self.height * self.width

    def difference(self, expected: MemoryGeometry) -> str:
        """The first field that differs, as `batch differs: found 2, expected 1`; empty where none does."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(expected, field.name)
            if ours != theirs:
                pixels = [f" ({x * TOKEN_PIXELS} pixels)" * (field.name in ("height", "width")) for x in (ours, theirs)]
                return f"{field.name} differs: found {ours}{pixels[0]}, expected {theirs}{pixels[1]}"
        return ""

    def to_dict(self) -> dict:
        return asdict(self)


def estimate_bytes(
    policy: MemoryPolicy, geometry: MemoryGeometry, dtype: torch.dtype, frames: int = CYCLE_FRAMES
) -> int:
    """Bytes of a memory for a clip of `frames` latent frames (windowed policies hold no more than their window)."""
    rows = geometry.layers * geometry.batch * policy.slots(frames) * geometry.tokens * geometry.heads
    return 2 * rows * row_bytes(policy.precision, dtype, geometry.head_dim)


class Store:
    """Buffers of all layers. Reads return model-dtype tensors on `device`; nothing here synchronises with the host."""

    def __init__(
        self, policy: MemoryPolicy, geometry: MemoryGeometry, dtype: torch.dtype, device: torch.device, slots: int
    ) -> None:
        self.precision: Precision = policy.precision
        self.geometry, self.dtype, self.device, self.slots = geometry, dtype, device, slots
        self.home = torch.device("cpu") if policy.residence == "cpu" else device
        self._pinned = self.home.type == "cpu" and device.type == "cuda"
        self._buffers: list[tuple[Tensor, ...]] = [self._allocate(slots) for _ in range(geometry.layers)]

    @property
    def buffers(self) -> list[tuple[Tensor, ...]]:
        """The tensors of every layer; the host may read and write them."""
        return self._buffers

    @property
    def in_place(self) -> bool:
        """Whether the block's own keys and values are written into the buffer as well, so that reading is a view."""
        return self.precision == "model" and self.home == self.device

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self._buffers for t in layer)

    def _allocate(self, slots: int) -> tuple[Tensor, ...]:
        g = self.geometry
        return tuple(
            torch.zeros(
                g.batch, slots, g.tokens, g.heads, n, dtype=dtype, device=self.home, pin_memory=self._pinned
            )
            for n, dtype in row_kinds(self.precision, self.dtype, g.head_dim)
        )  # fmt: skip

    def grow(self, slots: int) -> None:
        """Enlarge to `slots` slots; views of the old buffers stay valid and unchanged."""
        for i, old in enumerate(self.buffers):
            new = self._allocate(slots)
            for source, target in zip(old, new, strict=True):
                target[:, : self.slots].copy_(source)
            self._buffers[i] = new
        self.slots = slots

    def put(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values [B, F * tokens, heads, head_dim] of F frames into slots [F]."""
        parts = [x.detach().unflatten(1, (slots.shape[0], -1)) for x in (k, v)]
        if self.precision != "model":
            codes = [quantise(x, self.precision) for x in parts]
            parts = [c for c, _ in codes] + [s for _, s in codes]
        self.write_parts(layer, slots, parts)

    def write_parts(self, layer: int, slots: Tensor, parts: list[Tensor]) -> None:
        """Put what is stored of frames, [B, F, tokens, heads, n] for every buffer, into slots [F]."""
        for buffer, part in zip(self._buffers[layer], parts, strict=True):
            buffer.index_copy_(1, slots.to(buffer.device), part.to(device=buffer.device, dtype=buffer.dtype))

    def view(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        """The first `slots` slots as [B, slots * tokens, heads, head_dim], without a copy (only where `in_place`)."""
        k, v = self._buffers[layer]
        return k[:, :slots].flatten(1, 2), v[:, :slots].flatten(1, 2)

    def gather(self, layer: int, slots: Tensor, reserve: int = 0, prefetch_next: bool = False) -> tuple[Tensor, Tensor]:
        """Keys and values of slots [N] as [B, N * tokens + reserve, heads, head_dim] in the model's dtype, on `device`.

        reserve: tokens left unfilled at the end, for the block's own keys and values, so that attention reads this very
        tensor (of stores that are not read in place). prefetch_next: the same slots of the next layer,
        which this forward does not write, are read next; a store in main memory starts their copy now.
        """
        parts = self.take_parts(layer, slots, reserve, prefetch_next)
        if self.precision == "model":
            return parts[0].flatten(1, 2), parts[1].flatten(1, 2)
        g, tokens = self.geometry, slots.shape[0] * self.geometry.tokens
        k, v = (
            torch.empty(g.batch, tokens + reserve, g.heads, g.head_dim, dtype=self.dtype, device=self.device)
            for _ in range(2)
        )
        for out, codes, scale in ((k, parts[0], parts[2]), (v, parts[1], parts[3])):
            dequantise_into(out[:, :tokens], codes.flatten(1, 2), scale.flatten(1, 2), self.precision)
        return k, v

    def take_parts(self, layer: int, slots: Tensor, reserve: int, prefetch_next: bool) -> tuple[Tensor, ...]:
        return tuple(t.index_select(1, slots.to(t.device)).to(self.device) for t in self._buffers[layer])

    def blend(self, sink: Tensor, evicted: Tensor, keep: float) -> None:
        """sink <- keep * sink + (1 - keep) * evicted, keys and values of every layer (Salt's `compression_alpha`)."""
        for layer in range(self.geometry.layers):
            old, gone = self.gather(layer, sink), self.gather(layer, evicted)
            k, v = (keep * a + (1 - keep) * b for a, b in zip(old, gone, strict=True))
            self.put(layer, sink, k, v)


def row_kinds(precision: Precision, dtype: torch.dtype, head_dim: int) -> list[tuple[int, torch.dtype]]:
    """Values per row and dtype of a layer's tensors, in the order of `Store.buffers`."""
    codes, scales, scale_dtype = row_layout(precision, head_dim)
    return [(codes, storage_dtype(precision, dtype))] * 2 + [(scales, scale_dtype)] * 2 * (scales > 0)


def buffer_names(precision: Precision) -> tuple[str, ...]:
    """Names of a layer's tensors in the order of `Store.buffers`."""
    return ("k", "v") if precision == "model" else ("k", "v", "k_scale", "v_scale")
