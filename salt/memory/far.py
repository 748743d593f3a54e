"""The memory of FAR's models (AnyFlow-FAR): everything is kept, older blocks in larger patches.

Of the blocks before the current one, the newest `policy.window` have keys and values of the usual patches; the others
have those of patches as large as 2 x 2 of them, which the model embeds on their own. Source: FAR (arXiv 2503.19325), as
diffusers' `AnyFlowFARTransformer3DModel` computes it. It encodes the whole clip again after each block; here what a
block becomes in large patches is written once, as it depends on older large patches alone, which comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..rope import Rotary, apply_rotary, cached_rotary_table
from .attention import Attention, MemoryPass
from .cache import KVMemory
from .fused import QKNorm
from .policy import MemoryPolicy
from .shots import Shots

STRIDE = 2  # usual patches along each side of a large one
KEY_TILE = 128  # diffusers' kernel takes multiples of so many tokens
KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class FarContext:
    """Keys (rotated) and values [B, tokens, heads, head_dim] of every layer: those of large patches, then the others.

    far: latent frames in large patches. blocks: latent frames of the others, block by block. latents [B, C, F, H, W]:
    of the same frames as `blocks`, which are encoded again when a block is added.
    """

    layers: tuple[KeysAndValues, ...] = ()
    far: int = 0
    blocks: tuple[int, ...] = ()
    latents: Tensor | None = None

    @property
    def nbytes(self) -> int:
        tensors = [x for layer in self.layers for x in layer] + ([] if self.latents is None else [self.latents])
        return sum(x.numel() * x.element_size() for x in tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> FarContext:
        latents = None if self.latents is None else change(self.latents)
        return replace(self, layers=tuple((change(k), change(v)) for k, v in self.layers), latents=latents)

    def to(self, device: torch.device | str) -> FarContext:
        """A copy on a device that shares nothing."""
        return self.map(lambda x: x.to(device, copy=True))


class FarMemory(KVMemory):
    """A `KVMemory` with the policy `far`. held: all latent frames from `origin` to `next_frame`.

    It cannot be rewound, as the latents of older blocks are gone, nor written again under another prompt. Raises
    ValueError and InputError as `KVMemory` does.
    """

    context = FarContext()  # replaced by every pass that writes

    @property
    def nbytes(self) -> int:
        return self.context.nbytes

    def open(self, write: int | Sequence[int] = (), read: int = 0, start: int | None = None) -> FarPass:
        """Begin one forward: of a clean block that is written, or of a noisy one."""
        blocks = [write] if isinstance(write, int) else list(write)
        if start is not None or len(blocks) + (read > 0) != 1:
            raise ValueError(f"memory pass: found blocks {[*blocks, read]}, expected one for the policy {self.policy}")
        return FarPass(self, blocks[0] if blocks else read, bool(blocks))

    def commit(self, memory_pass: MemoryPass, context_sigma: float = 0.0) -> None:
        assert isinstance(memory_pass, FarPass)
        if memory_pass.writes:
            self.context = memory_pass.result()
            self.next_frame += memory_pass.frames
            self.held = tuple(range(self.origin, self.next_frame))
        self.context_sigma = context_sigma

    def renew(self, frame: int, policy: MemoryPolicy, shots: Shots = ()) -> None:
        """Raises InputError for a policy of another kind."""
        if policy.kind != "far":
            raise InputError("memory_policy", f"found {policy} for a memory of {self.policy}, expected far:N")
        super().renew(frame, policy, shots)
        self.context = FarContext()

    def trim(self, frame: int) -> None:
        """Raises InputError for anything but the clip's beginning and its end."""
        if frame == self.origin:
            self.renew(frame, self.policy)
        elif frame != self.next_frame:
            raise InputError(
                "frame",
                f"found {frame}, expected {self.origin} or {self.next_frame}: a memory of {self.policy} has older "
                "blocks in large patches alone, and cannot be rewound into the clip",
            )

    def restart(self, frame: int, keep_sink: bool) -> None:
        raise InputError("switch", f"found recache, expected keep or cut: a memory of {self.policy} is written once")

    def copied(
        self, device: torch.device | str, heads: int | None = None, change: Callable[[Tensor], Tensor] = torch.clone
    ) -> FarMemory:
        """Raises InputError for other heads."""
        if heads is not None:
            raise InputError("memory", f"found one of {self.policy}, whose heads cannot be shared among processes")
        twin = FarMemory(self.policy, self.geometry, self.dtype, device, self._frames_hint or None, self.fingerprint)
        twin.origin, twin.next_frame, twin.held = self.origin, self.next_frame, self.held
        twin.context_sigma, twin.context = self.context_sigma, self.context.to(device)
        return twin


class FarPass(MemoryPass):
    """What one forward reads and writes of a `FarMemory`.

    frames: of its block. A pass that writes is a forward of more than the block: `earlier` [B, C, F, H, W] are the
    latents of the blocks before it that are encoded again, the first `newly_far` frames of them in large patches.
    """

    def __init__(self, memory: FarMemory, frames: int, writes: bool) -> None:
        self.policy, self.geometry, self.memory = memory.policy, memory.geometry, memory
        self.writes, self.freeze, self.segments = writes, False, []
        self._frames, self._start = frames, memory.next_frame
        context, g = memory.context, memory.geometry
        self.newly_far = 0
        self.parts = [frames]  # latent frames of the blocks in usual patches in this forward
        self.latents: Tensor | None = None  # of the block, where it is written
        self._written: dict[int, KeysAndValues] = {}
        if writes:
            kept = (memory.policy.window or 0) - 1
            near = context.blocks[len(context.blocks) - kept :] if kept else ()
            self.newly_far = sum(context.blocks) - sum(near)
            self.parts = [*near, frames]
        self.far_tokens = (g.height // STRIDE) * (g.width // STRIDE)  # of a latent frame
        first = self._start - sum(self.parts[:-1])
        near_frames, far_frames = range(first, self._start + frames), range(first - self.newly_far, first)
        self.rotary: Rotary = cached_rotary_table(tuple(near_frames), g.height, g.width, g.head_dim, memory.device)
        if self.newly_far:
            far = cached_rotary_table(
                tuple(far_frames), g.height // STRIDE, g.width // STRIDE, g.head_dim, memory.device, stride=STRIDE
            )
            self.rotary = Rotary(*(torch.cat(pair) for pair in zip(far, self.rotary, strict=True)))

    @property
    def start_frame(self) -> int:
        return self._start

    @property
    def frames(self) -> int:
        return self._frames

    @property
    def earlier(self) -> Tensor | None:
        return self.memory.context.latents if self.writes else None

    def takes_kernels(self, q: Tensor, k: Tensor, v: Tensor, norm: QKNorm) -> bool:
        return False

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, norm: QKNorm | None = None
    ) -> Tensor:
        q, k = apply_rotary(q, self.rotary), apply_rotary(k, self.rotary)
        context = self.memory.context
        if not self.writes:
            return self._read(layer, q, k, v, attention)
        kept_tokens = context.far * self.far_tokens
        keys, values = [], []
        with suppress(IndexError):  # of a memory that nothing was written to
            keys, values = ([x[:, :kept_tokens]] for x in context.layers[layer])
        sizes = [n for n in (self.newly_far * self.far_tokens,) if n] + [n * self.geometry.tokens for n in self.parts]
        outputs = []
        for q_part, k_part, v_part in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
            keys, values = [torch.cat([*keys, k_part], 1)], [torch.cat([*values, v_part], 1)]
            outputs.append(attention(q_part, keys[0], values[0]))
        self._written[layer] = keys[0].detach(), values[0].detach()
        return torch.cat(outputs, dim=1)

    def _read(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """The block sees all of the memory, itself, and zeros up to whole tiles, as in diffusers and in training."""
        zeros = k.new_zeros(k.shape[0], -k.shape[1] % KEY_TILE, *k.shape[2:])
        kept = self.memory.context.layers
        past_k, past_v = kept[layer] if kept else (k[:, :0], v[:, :0])
        return attention(q, torch.cat([past_k, k, zeros], 1), torch.cat([past_v, v, zeros.to(v)], 1))

    def result(self) -> FarContext:
        """The memory's contents after this pass. Raises ValueError where layers are missing."""
        layers = self.geometry.layers
        if sorted(self._written) != list(range(layers)) or self.latents is None:
            raise ValueError(f"memory pass: found {len(self._written)} layers written, expected {layers}")
        before = self.memory.context
        near = self.latents if self.earlier is None else torch.cat([self.earlier, self.latents], dim=2)
        return FarContext(
            tuple(self._written[layer] for layer in range(layers)),
            before.far + self.newly_far,
            tuple(self.parts),
            near[:, :, self.newly_far :].clone(),
        )


def memory_class(policy: MemoryPolicy) -> type[KVMemory]:
    """The class of memory that a policy needs."""
    return FarMemory if policy.kind == "far" else KVMemory
