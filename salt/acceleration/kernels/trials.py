"""Every fused kernel beside its plain twin on small inputs: what a device must pass before it uses them, and tests do.

The twins are the functions and methods that run without kernels; nothing is written a second time here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...memory import KVMemory, MemoryGeometry, MemoryPass, MemoryPolicy
from ...memory.fused import QKNorm
from ...models.modulation import gated_residual, modulated_norm, wide_norm

# Norm of the difference over the norm. torch's RMS norm rounds twice where it is old (2.6): 3.5e-3 in bfloat16, and
# some quantised keys are a level off, 2e-2 in int4.
LIMITS = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}
STORED_LIMIT = 5e-2
FRAMES = 3  # of a block


@dataclass(frozen=True)
class Pair:
    """The result of a kernel and of its twin. stored: it has been quantised, so that a difference can be a level."""

    name: str
    found: Tensor
    expected: Tensor
    stored: bool = False

    @property
    def error(self) -> float:
        """Norm of the difference over the norm of what is expected; infinite where a number is not finite."""
        found, expected = self.found.float(), self.expected.float()
        error = ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()
        return error if error == error else float("inf")

    @property
    def limit(self) -> float:
        """The largest error that rounding explains."""
        return STORED_LIMIT if self.stored else LIMITS[self.found.dtype]


class Numbers:
    """Random tensors of one seed, the same on every device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.generator = device, dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device, dtype or self.dtype)


@torch.no_grad()
def norm_pairs(
    device: torch.device, dtype: torch.dtype, width: int, batch: int = 2, frames: int = FRAMES, tokens: int = 5
) -> Iterator[Pair]:
    """LayerNorm with modulation by frame, with one for all frames, and with a weight alone."""
    numbers = Numbers(device, dtype)
    x = numbers(batch, frames * tokens, 2 * width)[..., :width] + 0.5
    plain = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    affine = nn.LayerNorm(width, eps=1e-6).to(device)
    affine.weight.copy_(numbers(width, dtype=torch.float32))
    affine.bias.copy_(numbers(width, dtype=torch.float32))
    for count in (frames, 1):
        modulation = numbers(batch, count, 6, 1, width, dtype=torch.float32)
        scale, shift = modulation[:, :, 1], modulation[:, :, 4]
        found, expected = (modulated_norm(plain, x, scale, shift, fused) for fused in (True, False))
        yield Pair(f"modulation by {count}", found, expected)
    yield Pair("weight and bias", wide_norm(affine, x, True), wide_norm(affine, x, False))


@torch.no_grad()
def residual_pairs(
    device: torch.device, dtype: torch.dtype, width: int, batch: int = 2, frames: int = FRAMES, tokens: int = 5
) -> Iterator[Pair]:
    """The gated residual, by frame and with one gate for all frames."""
    numbers = Numbers(device, dtype)
    x, y = numbers(batch, frames * tokens, width), numbers(batch, frames * tokens, 2 * width)[..., width:]
    for count in (frames, 1):
        gate = numbers(batch, count, 6, 1, width, dtype=torch.float32)[:, :, 2]
        found, expected = (gated_residual(x, y, gate, fused) for fused in (True, False))
        yield Pair(f"gate by {count}", found, expected)


class TwoMemories:
    """The same blocks through a memory with kernels, and through one without."""

    def __init__(
        self, policy: MemoryPolicy, geometry: MemoryGeometry, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.numbers, self.geometry = Numbers(device, dtype), geometry
        self.fused, self.plain = (KVMemory(policy, geometry, dtype, device) for _ in range(2))
        self.width = geometry.heads * geometry.head_dim
        self.norms = [nn.RMSNorm(self.width, eps=1e-6).to(device, dtype) for _ in range(2)]
        for norm in self.norms:
            norm.weight.copy_(self.numbers(self.width) * 0.3 + 1)

    def forward(self, write: int = 0, read: int = 0, start: int | None = None) -> Iterator[Pair]:
        """One pass through both: what attention was given, and what is stored then. Both continue from the same."""
        g, norms = self.geometry, self.norms
        qkv = self.numbers(g.batch, (write + read) * g.tokens, 3 * self.width)
        flat = qkv.chunk(3, dim=-1)  # as one layer for all three gives them
        given: dict[bool, list[Tensor]] = {True: [], False: []}

        def run(memory: KVMemory, by_kernels: bool) -> MemoryPass:
            def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                given[by_kernels] += [q.clone(), k.clone(), v.clone()]
                return q

            passing = memory.open(write=write or (), read=read, start=start)
            q, k, v = (x.unflatten(2, (g.heads, -1)) for x in flat)
            if by_kernels:
                norm = QKNorm(norms[0].weight, norms[1].weight, 1e-6)
                if not passing.takes_kernels(q, k, v, norm):
                    raise ValueError(f"the kernels do not take {passing.policy} in {q.dtype}")
                passing.attend(0, q, k, v, attention, norm)
            else:
                q, k = (norm(x).unflatten(2, (g.heads, -1)) for norm, x in zip(norms, flat, strict=False))
                passing.attend(0, q, k, v, attention)
            if write:
                memory.commit(passing)
            return passing

        run(self.plain, False)
        run(self.fused, True)
        names = [(name, index) for index in range(len(given[True]) // 3) for name in ("q", "k", "v")]
        quantised = self.plain.policy.precision != "model"
        for (name, index), found, expected in zip(names, given[True], given[False], strict=True):
            # Keys of a second block are read together with those that the first has just stored.
            yield Pair(f"{name} of block {index}", found, expected, stored=quantised and index > 0 and name == "k")
        yield from self._stored()

    def _stored(self) -> Iterator[Pair]:
        ours, theirs = self.fused.store, self.plain.store
        assert ours is not None and theirs is not None
        if self.plain.held:
            slots = self.plain.slot_index(self.plain.held)
            contents = zip(ours.gather(0, slots), theirs.gather(0, slots), strict=True)
            for name, (found, expected) in zip(("stored k", "stored v"), contents, strict=True):
                yield Pair(name, found, expected, stored=ours.precision != "model")
        for own, other in zip(ours.buffers[0], theirs.buffers[0], strict=True):
            own.copy_(other)


@torch.no_grad()
def memory_pairs(
    policy: MemoryPolicy, geometry: MemoryGeometry, device: torch.device, dtype: torch.dtype, frames: int = FRAMES
) -> Iterator[Pair]:
    """Context passes until slots are written again, a denoising step, and the fused pass of both.

    policy: with a window of three blocks. frames: of a block.
    """
    memories = TwoMemories(policy, geometry, device, dtype)
    if policy.rebuilt:
        yield from memories.forward(write=3 * frames, start=0)
        yield from memories.forward(read=frames)
        return
    for _ in range(4):
        yield from memories.forward(write=frames)
    yield from memories.forward(read=frames)
    if policy.kind != "blended":
        yield from memories.forward(write=frames, read=frames)


def fault_of(pairs: Iterator[Pair]) -> str | None:
    """What is wrong with kernels on a device: that they fail, or that their results differ; None where all is right."""
    try:
        worst = max(pairs, key=lambda pair: pair.error / pair.limit)
        error, limit = worst.error, worst.limit
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as failure:
        return f"a trial fails: {type(failure).__name__}: {failure}".splitlines()[0][:300]
    return None if error <= limit else f"a trial is wrong by {error:.1e} ({worst.name}), expected at most {limit:.0e}"
