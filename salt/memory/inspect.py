"""Inspection of a memory: the frame in each slot, norms of keys and values per layer, as text and as a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .cache import KVMemory
from .far import FarMemory
from .shots import shots_when_arrives


@dataclass(frozen=True)
class Slot:
    """A slot of the buffers and its latent frame (None if it is empty); `sink` frames are never evicted."""

    frame: int | None
    kind: Literal["sink", "recent", "empty"]


def slots(memory: KVMemory) -> list[Slot]:
    """All slots in order, a window's also before its buffers have grown to them; none before the first use."""
    if memory.store is None:
        return []
    found = [Slot(None, "empty")] * max(memory.store.slots, memory.policy.window or 0)
    for frame in memory.held:
        sink = frame - memory.origin < memory.policy.sink
        found[memory.slot(frame)] = Slot(frame, "sink" if sink else "recent")
    if memory.policy.rebuilt and memory.policy.sink and memory.held:  # the first frame stands for the oldest one
        found[memory.slot(memory.held[0])] = Slot(memory.origin, "sink")
    return found


def norms(memory: KVMemory) -> Tensor:
    """Mean L2 norm over tokens and heads of keys and values, [2, layers, held frames], float32 on the CPU.

    Of a `far` memory one mean over all of it, [2, layers, 1].
    """
    g = memory.geometry
    if isinstance(memory, FarMemory) and memory.held:
        means = [[x.float().norm(dim=-1).mean().cpu() for x in layer] for layer in memory.context.layers]
        return torch.stack([torch.stack(pair) for pair in means], dim=1)[:, :, None]
    if memory.store is None or not memory.held:
        return torch.zeros(2, g.layers, 0)
    index = memory.slot_index(memory.held)
    layers = []
    for layer in range(g.layers):
        pair = memory.store.gather(layer, index)
        by_frame = [x.unflatten(1, (len(memory.held), g.tokens)).float().norm(dim=-1).mean((0, 2, 3)) for x in pair]
        layers.append(torch.stack(by_frame).cpu())
    return torch.stack(layers, dim=1)


def ranges(frames: Sequence[int]) -> str:
    """[0, 1, 2, 6, 7] -> `0-2, 6-7`."""
    runs: list[list[int]] = []
    for frame in sorted(frames):
        if runs and frame == runs[-1][1] + 1:
            runs[-1][1] = frame
        else:
            runs.append([frame, frame])
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def held_at(memory: KVMemory, frame: int) -> tuple[int, ...]:
    """Latent frames that the memory held when `next_frame` was `frame`."""
    held: tuple[int, ...] = ()
    for at in range(memory.origin, frame):
        held = memory.kept(held, at, 1, True, shots_when_arrives(memory.shots, at)) + (at,)
    return held


def lost_by_rewinding(memory: KVMemory, frame: int) -> list[int]:
    """Latent frames that a rewind to `frame` cannot bring back: held when `next_frame` was `frame`, evicted since.

    None of a memory that is rebuilt.
    """
    if memory.policy.rebuilt:
        return []
    return sorted(set(held_at(memory, frame)) - set(memory.held))


def blended_since(memory: KVMemory, frame: int) -> list[int]:
    """Latent frames evicted since `next_frame` was `frame` that a blended sink may have absorbed; a rewind leaves them.

    The sink absorbs frames where as many are evicted at once as it has itself. Empty for other policies.
    """
    if memory.policy.kind != "blended":
        return []
    before = set(range(memory.origin, frame)) - set(held_at(memory, frame))
    return sorted(set(range(memory.origin, memory.next_frame)) - set(memory.held) - before)


def slots_as_text(memory: KVMemory) -> str:
    """The frame of each slot in order, `-` where it is empty: `sink 0 1 2, then 9 10 11 6 7 8`."""
    if isinstance(memory, FarMemory):
        near = memory.origin + memory.context.far
        far_frames, others = ranges(range(memory.origin, near)), ranges(range(near, memory.next_frame))
        return f"in large patches {far_frames or 'none'}, in usual ones {others or 'none'}"
    found = slots(memory)
    names = ["-" if s.frame is None else str(s.frame) for s in found]
    count = sum(s.kind == "sink" for s in found)
    sink, others = " ".join(names[:count]), " ".join(names[count:])
    return f"sink {sink}, then {others}" if sink else others or "none"


def as_text(memory: KVMemory, fps: int) -> str:
    """A table: what is held and in which slots, then mean norms per layer. fps: frames of the clip per second."""
    g = memory.geometry
    places = textwrap.wrap(slots_as_text(memory), 78)
    lines = [
        f"policy            {memory.policy}",
        f"next frame        latent frame {memory.next_frame} ({memory.next_frame * 4 / fps:.4g} s)",
        f"holds             {len(memory.held)} latent frames ({ranges(memory.held) or 'none'})",
        f"slots             {places[0]}",
        *(" " * 18 + more for more in places[1:]),
        *([f"shots             begin at {', '.join(str(s.start) for s in memory.shots)}"] if memory.shots else []),
        f"geometry          {g.layers} layers, {g.heads} heads of {g.head_dim}, {g.height}x{g.width} tokens",
        f"batch             {g.batch}",
        f"dtype, bytes      {str(memory.dtype).removeprefix('torch.')}, {memory.nbytes / 2**20:.1f} MiB",
        f"model             {memory.fingerprint or 'unknown'}",
    ]
    if memory.held:
        lines += ["", "layer   |k|      |v|"]
        k, v = norms(memory).mean(dim=2)
        lines += [f"{i:5d} {a:8.3f} {b:8.3f}" for i, (a, b) in enumerate(zip(k.tolist(), v.tolist(), strict=True))]
    return "\n".join(lines)


def picture(memory: KVMemory, width: int = 768) -> Tensor:
    """RGB [H, W, 3] in [0, 1]: a strip of slots (sink, recent, empty) with their frame numbers, then norms.

    Norms of keys and of values have a row per layer and a column per held frame, each picture scaled from its smallest
    (dark) to its largest (bright) value.
    """
    colours = {"sink": (0.95, 0.65, 0.2), "recent": (0.25, 0.6, 0.9), "empty": (0.2, 0.2, 0.22)}
    found = slots(memory) or [Slot(None, "empty")]
    strip = torch.tensor([[colours[s.kind] for s in found]])
    parts = [_numbered(_enlarged(strip, 32, width), [s.frame for s in found])]
    gap = torch.zeros(6, width, 3)
    for values in norms(memory):
        if values.numel():
            low, high = values.min(), values.max()
            x = (values - low) / (high - low).clamp_min(1e-9)
            # Dark violet over orange to light yellow, which is monotonic in grey as well.
            rgb = torch.stack([x.sqrt(), x**1.5, (0.35 + 0.5 * x * (x - 0.4)).clamp(0, 1)], dim=-1)
            parts += [gap, _enlarged(rgb, max(6 * values.shape[0], 96), width)]
    return torch.cat(parts).clamp(0, 1)


def _numbered(strip: Tensor, frames: Sequence[int | None]) -> Tensor:
    """The strip [h, w, 3] with frame numbers on its cells; only every second or third where not all fit."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = strip.shape[:2]
    image = Image.fromarray((strip * 255).round().to(torch.uint8).numpy())
    draw, cell = ImageDraw.Draw(image), width / len(frames)
    widest = max(draw.textlength(str(f)) for f in frames) + 4
    for i in range(0, len(frames), math.ceil(widest / cell)):
        if frames[i] is not None:
            draw.text(((i + 0.5) * cell, height / 2), str(frames[i]), fill=(0, 0, 0), anchor="mm")
    return torch.from_numpy(np.array(image)).float() / 255


def _enlarged(rgb: Tensor, height: int, width: int) -> Tensor:
    """Cells [h, w, 3] as blocks of pixels."""
    rows = torch.arange(height) * rgb.shape[0] // height
    columns = torch.arange(width) * rgb.shape[1] // width
    return rgb[rows][:, columns]
