"""The KV-cache memory of an autoregressive rollout.

One rule makes it simple: only the context pass (a clean block at t = 0) decides what later blocks see. Denoising steps
read, and the memory stays as it was. What is kept is bookkeeping in plain integers on the host, so no layer ever waits
for the device; where a frame lies is a pure function of its index, so a clip that is extended lies exactly as one made
in one go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .attention import MemoryPass, Segment
from .policy import MemoryPolicy
from .store import MemoryGeometry, Store, estimate_bytes

GROWTH = 1.5


class KVMemory:
    """Keys and values of earlier latent frames, for all layers of one model and one clip (or batch of clips).

    Use: `memory.open(read=F)` for a denoising step, `memory.open(write=F)` for a context pass, or both at once for the
    fused pass; hand the pass to the model; after a context pass call its `commit()`.

    policy, geometry: what is kept, and its shape. dtype: the model's. frames: a hint for policy `full`, so that storage
    of the right size is taken at once. fingerprint: of the model that writes it (checked on load).
    """

    def __init__(
        self,
        policy: MemoryPolicy,
        geometry: MemoryGeometry,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        frames: int | None = None,
        fingerprint: str = "",
    ) -> None:
        self.policy, self.geometry, self.dtype = policy, geometry, dtype
        self.device = torch.device(device)
        self.fingerprint = fingerprint
        self.context_sigma = 0.0
        self.origin = 0
        self.next_frame = 0
        self.held: tuple[int, ...] = ()
        self._frames_hint = frames or 0
        self.store: Store | None = None

    @property
    def nbytes(self) -> int:
        """Bytes allocated; 0 before the first use."""
        return self.store.nbytes if self.store is not None else 0

    def estimate_bytes(self, frames: int = 21) -> int:
        """Bytes this memory will take for a clip of `frames` latent frames."""
        return estimate_bytes(self.policy, self.geometry, self.dtype, frames)

    def slot(self, frame: int) -> int:
        return self.policy.slot(frame, self.origin)

    def allocated(self, end_frame: int) -> Store:
        """The store, with room for frames up to `end_frame` (exclusive)."""
        needed = self.policy.slots(end_frame - self.origin)
        if self.store is None:
            slots = max(needed, self.policy.slots(self._frames_hint))
            self.store = Store(self.policy, self.geometry, self.dtype, self.device, slots)
        elif self.store.slots < needed:
            self.store.grow(max(needed, int(self.store.slots * GROWTH)))
        return self.store

    def open(self, write: int | Sequence[int] = (), read: int = 0) -> MemoryPass:
        """Begin one forward of the model: clean blocks to write first, then a noisy block of `read` frames.

        Blocks follow one another from `next_frame` on. Frames that have no room beside the arriving block are evicted
        now, whatever the denoising step. Raises ValueError when a block does not fit the policy.
        """
        blocks = [(n, True) for n in ([write] if isinstance(write, int) else write)] + [(read, False)] * (read > 0)
        if not blocks or any(n < 1 for n, _ in blocks):
            raise ValueError(f"memory pass: found blocks {[n for n, _ in blocks]}, expected at least one, each above 0")
        if len(blocks) > 1 and self.policy.kind == "blended":
            raise ValueError("memory pass: found several blocks, expected one at a time for a blended sink")
        start, held = self.next_frame, self.held
        store = self.allocated(start + sum(n for n, _ in blocks))
        segments = []
        surviving = set(held)
        for frames, writes in blocks:
            self.policy.check_block(frames)
            kept = self.policy.kept(held, frames, self.origin)
            if self.policy.kind == "blended":
                self._blend(store, held, kept)
            surviving &= set(kept)
            block = tuple(range(start, start + frames))
            segments.append(Segment.plan(self, kept, block, writes))
            held = kept + block if writes else kept
            start += frames
        # From here on evicted slots may be overwritten, so an interrupted forward must not find them in `held`.
        self.held = tuple(f for f in self.held if f in surviving)
        return MemoryPass(self, store, segments)

    def _blend(self, store: Store, held: tuple[int, ...], kept: tuple[int, ...]) -> None:
        evicted = [f for f in held if f not in set(kept)]
        sink = [f for f in kept if f - self.origin < self.policy.sink]
        if evicted and len(evicted) == len(sink):
            store.blend(self.slot_index(sink), self.slot_index(evicted), self.policy.blend)

    def slot_index(self, frames: Sequence[int]) -> torch.Tensor:
        """Slots of the given frames as an int64 tensor, where the buffers are that it points into."""
        slots = torch.tensor([self.slot(f) for f in frames], dtype=torch.int64)
        return slots if self.policy.residence == "cpu" else slots.to(self.device, non_blocking=True)

    def trim(self, frame: int) -> None:
        """Rewind: forget latent frame `frame` and everything after it; the rollout goes on from there.

        Frames that a windowed policy has already evicted do not come back. Raises ValueError outside
        [origin, next_frame].
        """
        if not self.origin <= frame <= self.next_frame:
            raise ValueError(f"frame: found {frame}, expected {self.origin} to {self.next_frame}")
        self.held = tuple(f for f in self.held if f < frame)
        self.next_frame = frame

    def cut(self) -> None:
        """Forget everything; positions go on, and the next frames become the sink (a hard scene change)."""
        self.held = ()
        self.origin = self.next_frame

    def restart(self, frame: int, keep_sink: bool) -> None:
        """Make ready to re-encode latent frames from `frame` on (recache): with the old sinks kept, or new ones."""
        if not self.origin <= frame <= self.next_frame:
            raise ValueError(f"frame: found {frame}, expected {self.origin} to {self.next_frame}")
        sinks = tuple(f for f in self.held if f - self.origin < self.policy.sink and f < frame)
        self.held = sinks if keep_sink else ()
        if not keep_sink:
            self.origin = frame
        self.next_frame = frame

    def fork(self) -> KVMemory:
        """An independent branch: same content, nothing mutable shared."""
        return self.copied(self.device)

    def copied(self, device: torch.device | str) -> KVMemory:
        """An independent branch on another device (or the same): where a memory rests between runs, and comes back."""
        twin = self._like(self.geometry)
        twin.device = torch.device(device)
        if self.store is not None:
            twin.store = Store(self.policy, self.geometry, self.dtype, twin.device, self.store.slots)
            for ours, theirs in zip(twin.store.buffers, self.store.buffers, strict=True):
                for to, source in zip(ours, theirs, strict=True):
                    to.copy_(source)
        return twin

    def empty_like(self) -> KVMemory:
        """A memory of the same kind with nothing in it (for the unconditional branch of guidance)."""
        return KVMemory(
            self.policy, self.geometry, self.dtype, self.device, self._frames_hint or None, self.fingerprint
        )

    def _like(self, geometry: MemoryGeometry) -> KVMemory:
        twin = KVMemory(self.policy, geometry, self.dtype, self.device, self._frames_hint or None, self.fingerprint)
        twin.origin, twin.next_frame, twin.held = self.origin, self.next_frame, self.held
        twin.context_sigma = self.context_sigma
        return twin

    @staticmethod
    def merge(memories: Sequence[KVMemory]) -> KVMemory:
        """Join memories that stand at the same frame into one batch, rows in order; they stay as they are.

        Raises ValueError naming the first field in which two of them differ.
        """
        first = memories[0]
        for other in memories[1:]:
            for field in ("policy", "dtype", "device", "fingerprint", "origin", "next_frame", "held", "context_sigma"):
                if getattr(first, field) != getattr(other, field):
                    raise ValueError(f"merge: {field} differs: {getattr(first, field)} and {getattr(other, field)}")
            ours, theirs = ({**m.geometry.to_dict(), "batch": 0} for m in (first, other))
            if ours != theirs:
                raise ValueError(f"merge: geometry differs: {first.geometry} and {other.geometry}")
        geometry = MemoryGeometry(**{**first.geometry.to_dict(), "batch": sum(m.geometry.batch for m in memories)})
        merged = first._like(geometry)
        stores = [m.store for m in memories]
        if all(s is not None for s in stores):
            slots = min(s.slots for s in stores if s is not None)
            merged.store = Store(first.policy, geometry, first.dtype, first.device, slots)
            merged.store.buffers = [
                tuple(torch.cat([t[:, :slots] for t in parts]) for parts in zip(*layers, strict=True))
                for layers in zip(*(s.buffers for s in stores if s is not None), strict=True)
            ]
        return merged

    def __repr__(self) -> str:
        return (
            f"KVMemory({self.policy}, frames {len(self.held)} held of {self.next_frame}, {self.nbytes / 2**20:.1f} MiB)"
        )
