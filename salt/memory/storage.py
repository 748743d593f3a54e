"""Where keys and values lie: one fixed buffer per layer, in the model's dtype, int8 or fp8, on the device or the CPU.

Layout of every buffer: [B, slots, tokens, heads, head_dim]; a slot holds one latent frame. Quantised stores carry one
float32 scale per token and head beside it ([..., heads, 1]).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .policy import CYCLE_FRAMES, MemoryPolicy, Precision


@dataclass(frozen=True)
class MemoryGeometry:
    """Shape of what one latent frame leaves behind: `height` x `width` patch tokens in each of `layers` layers."""

    layers: int
    heads: int
    head_dim: int
    height: int
    width: int
    batch: int = 1

    @property
    def tokens(self) -> int:
        """Tokens per latent frame."""
        return self.height * self.width

    def to_dict(self) -> dict:
        return asdict(self)


def storage_dtype(precision: Precision, model_dtype: torch.dtype) -> torch.dtype:
    """dtype of the buffers. fp8 lies in uint8 buffers (index operations are not defined on float8).

    Raises ValueError where this torch has no float8_e4m3fn.
    """
    if precision == "fp8" and not hasattr(torch, "float8_e4m3fn"):
        raise ValueError(f"precision: found fp8, expected a torch with float8_e4m3fn (this is {torch.__version__})")
    return {"model": model_dtype, "int8": torch.int8, "fp8": torch.uint8}[precision]


def estimate_bytes(
    policy: MemoryPolicy, geometry: MemoryGeometry, dtype: torch.dtype, frames: int = CYCLE_FRAMES
) -> int:
    """Bytes that a memory will take for a clip of `frames` latent frames (windowed policies do not depend on it)."""
    rows = geometry.layers * geometry.batch * policy.slots(frames) * geometry.tokens * geometry.heads
    per_row = geometry.head_dim * storage_dtype(policy.precision, dtype).itemsize
    scale = 0 if policy.precision == "model" else torch.float32.itemsize
    return 2 * rows * (per_row + scale)


def quantise(x: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """x [..., head_dim] -> (codes, scale [..., 1]); symmetric, scaled by the largest magnitude per token and head."""
    limit = 127.0 if precision == "int8" else torch.finfo(torch.float8_e4m3fn).max
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / limit
    scaled = x.float() / scale
    if precision == "int8":
        return scaled.round().to(torch.int8), scale
    return scaled.to(torch.float8_e4m3fn).view(torch.uint8), scale


def dequantise(codes: Tensor, scale: Tensor, precision: Precision, dtype: torch.dtype) -> Tensor:
    """Inverse of `quantise`, in `dtype`."""
    values = codes if precision == "int8" else codes.view(torch.float8_e4m3fn)
    return (values.float() * scale).to(dtype)


class Store:
    """Buffers of all layers. Reads return model-dtype tensors on `device`; nothing here synchronises with the host."""

    def __init__(
        self, policy: MemoryPolicy, geometry: MemoryGeometry, dtype: torch.dtype, device: torch.device, slots: int
    ) -> None:
        self.precision: Precision = policy.precision
        self.geometry, self.dtype, self.device, self.slots = geometry, dtype, device, slots
        self.home = torch.device("cpu") if policy.residence == "cpu" else device
        self._pinned = self.home.type == "cpu" and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._pinned else None
        self._fetched: dict[tuple, tuple[tuple[Tensor, ...], torch.cuda.Event]] = {}
        self.buffers: list[tuple[Tensor, ...]] = [self._allocate(slots) for _ in range(geometry.layers)]

    @property
    def in_place(self) -> bool:
        """The block's own keys and values may lie in the buffer beside the memory, so that reading is a view."""
        return self.precision == "model" and self.home == self.device

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.buffers for t in layer)

    def _allocate(self, slots: int) -> tuple[Tensor, ...]:
        g = self.geometry
        shape = (g.batch, slots, g.tokens, g.heads, g.head_dim)
        kind = storage_dtype(self.precision, self.dtype)
        pair = [torch.zeros(shape, dtype=kind, device=self.home, pin_memory=self._pinned) for _ in range(2)]
        if self.precision == "model":
            return tuple(pair)
        scales = [
            torch.zeros(*shape[:-1], 1, dtype=torch.float32, device=self.home, pin_memory=self._pinned)
            for _ in range(2)
        ]
        return tuple(pair + scales)

    def grow(self, slots: int) -> None:
        """Make room for more frames (policy `full` only); buffers handed out before stay valid and unchanged."""
        for i, old in enumerate(self.buffers):
            new = self._allocate(slots)
            for source, target in zip(old, new, strict=True):
                target[:, : self.slots].copy_(source)
            self.buffers[i] = new
        self.slots = slots

    def put(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values [B, F * tokens, heads, head_dim] of F frames into slots [F]."""
        parts = [x.detach().unflatten(1, (slots.shape[0], -1)) for x in (k, v)]
        if self.precision != "model":
            codes = [quantise(x, self.precision) for x in parts]
            parts = [c for c, _ in codes] + [s for _, s in codes]
        for buffer, part in zip(self.buffers[layer], parts, strict=True):
            buffer.index_copy_(1, slots.to(buffer.device), part.to(device=buffer.device, dtype=buffer.dtype))

    def view(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        """The first `slots` slots as [B, slots * tokens, heads, head_dim], without a copy (only where `in_place`)."""
        k, v = self.buffers[layer]
        return k[:, :slots].flatten(1, 2), v[:, :slots].flatten(1, 2)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots [N] as [B, N * tokens, heads, head_dim] in the model's dtype, on `device`."""
        parts = self._take(layer, slots)
        if self.precision != "model":
            k, v, k_scale, v_scale = parts
            parts = (
                dequantise(k, k_scale, self.precision, self.dtype),
                dequantise(v, v_scale, self.precision, self.dtype),
            )
        return parts[0].flatten(1, 2), parts[1].flatten(1, 2)

    def _take(self, layer: int, slots: Tensor) -> tuple[Tensor, ...]:
        if self._stream is None:
            return tuple(t.index_select(1, slots.to(t.device)).to(self.device) for t in self.buffers[layer])
        parts = self._await(layer, slots)
        if layer + 1 < self.geometry.layers:
            self._prefetch(layer + 1, slots)
        return parts

    def _prefetch(self, layer: int, slots: Tensor) -> None:
        """Start the copy of one layer to the device on a stream of its own, while the layer before computes."""
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            host = slots.to(self.home)
            parts = tuple(
                t.index_select(1, host).pin_memory().to(self.device, non_blocking=True) for t in self.buffers[layer]
            )
            event = torch.cuda.Event()
            event.record(self._stream)
        self._fetched = {(layer, id(slots)): (parts, event)}

    def _await(self, layer: int, slots: Tensor) -> tuple[Tensor, ...]:
        if (layer, id(slots)) not in self._fetched:
            self._prefetch(layer, slots)
        parts, event = self._fetched.pop((layer, id(slots)))
        current = torch.cuda.current_stream(self.device)
        event.wait(current)
        for t in parts:
            t.record_stream(current)
        return parts

    def blend(self, sink: Tensor, evicted: Tensor, keep: float) -> None:
        """sink <- keep * sink + (1 - keep) * evicted, keys and values of every layer (Salt's `compression_alpha`)."""
        for layer in range(self.geometry.layers):
            old, gone = self.gather(layer, sink), self.gather(layer, evicted)
            k, v = (keep * a + (1 - keep) * b for a, b in zip(old, gone, strict=True))
            self.put(layer, sink, k, v)


def buffer_names(precision: Precision) -> tuple[str, ...]:
    """Names of a layer's tensors in the order of `Store.buffers`."""
    return ("k", "v") if precision == "model" else ("k", "v", "k_scale", "v_scale")
