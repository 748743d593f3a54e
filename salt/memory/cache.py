"""The KV-cache memory of an autoregressive rollout.

The one-write rule: only the context pass (a clean block at t = 0) decides what later blocks see; denoising steps read
and leave the memory as it was. Which frames are kept is bookkeeping in plain integers on the host, so no layer waits
for the device. The slot of a frame is a pure function of its index, so an extended clip is stored exactly as one
sampled in a single rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..rope import Rotary, cached_rotary_table
from . import shots as shot_rules
from .attention import MemoryPass, Segment
from .clean_latents import EMPTY
from .overwritten import OverwritePass, OverwriteState
from .pinned_store import new_store
from .policy import MemoryPolicy
from .shots import Shots
from .store import MemoryGeometry, Store, estimate_bytes

GROWTH_FACTOR = 1.5  # of buffers that are too small


def digits(fingerprint: str) -> str:
    """The part of a model's fingerprint that decides; names of LoRAs, for messages, may follow it."""
    return fingerprint.partition(" ")[0]


class KVMemory:
    """Keys and values of earlier latent frames, for all layers of one model and one clip (or batch of clips).

    Use: `memory.open(read=F)` for a denoising step, `memory.open(write=F)` for a context pass, or both at once for the
    fused pass; pass the result to the model; after a forward that wrote, call `memory.commit(memory_pass)`.

    policy, geometry: what is kept, and its shape. dtype: the model's. frames: latent frames of the clip, for which
    buffers are allocated at once; without it, and for a longer clip, they grow up to the policy's window. fingerprint:
    of the model that writes it (checked on load).
    origin: latent frame at which the scene starts; next_frame: latent frame at which the next block starts; held: the
    latent frames kept; context_sigma: noise level in [0, 1] of the latest context pass. clean: what a policy that
    rebuilds the memory rebuilds it from. shots: that began since origin (kind `shots`); slots: where its frames are.
    overwritten: which slots come next where they are overwritten.
    Raises ValueError (InputError for a field) for blocks and frames that do not fit.
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
        if policy.kind == "far" and type(self) is KVMemory:
            raise InputError("policy", f"found {policy}, which `SaltPipeline` alone has, with an AnyFlow-FAR model")
        self.policy, self.geometry, self.dtype = policy, geometry, dtype
        self.device = torch.device(device)
        self.fingerprint = fingerprint
        self.context_sigma = 0.0
        self.clean = EMPTY
        self.overwritten = OverwriteState.empty(geometry)
        self._unfinished: OverwriteState | None = None  # of a block whose last step has not come yet
        self.origin = 0
        self.next_frame = 0
        self.held: tuple[int, ...] = ()
        self.shots: Shots = ()
        self.slots: dict[int, int] = {}
        self._frames_hint = frames or 0
        self.store: Store | None = None
        self.in_use = False

    @contextmanager
    def writing(self, field: str = "memory") -> Iterator[None]:
        """Held by a rollout from its first block to its end. Raises InputError about `field` where another holds it."""
        self.check_free(field)
        self.in_use = True
        try:
            yield
        finally:
            self.in_use, self._unfinished = False, None

    def check_free(self, field: str = "memory") -> None:
        if self.in_use:
            raise InputError(
                field, "is being written by another rollout: exhaust or close that one first, or go on from a fork()"
            )

    @property
    def home(self) -> torch.device:
        """The device that the buffers lie on."""
        return torch.device("cpu") if self.policy.residence == "cpu" else self.device

    @property
    def nbytes(self) -> int:
        """Bytes allocated; 0 before the first use."""
        return self.store.nbytes if self.store is not None else 0

    def estimate_bytes(self, frames: int = 21) -> int:
        """Bytes this memory will take for a clip of `frames` latent frames."""
        return estimate_bytes(self.policy, self.geometry, self.dtype, frames)

    def check_fits(self, geometry: MemoryGeometry, fingerprint: str, field: str = "memory") -> None:
        """Raise InputError about `field` unless the memory was written with this geometry, by the model with this
        fingerprint."""
        if difference := self.geometry.difference(geometry):
            raise InputError(field, f"was written for another model or size: {difference}")
        if digits(self.fingerprint) != digits(fingerprint):
            found = f"found {self.fingerprint or 'none'}, expected {fingerprint}"
            raise InputError(field, f"was written by another model or LoRA: its fingerprint differs ({found})")

    def slot(self, frame: int) -> int:
        return self.slots[frame] if self.policy.kind == "shots" else self.policy.slot(frame, self.origin)

    def begin_shot(self, is_shot: bool) -> None:
        """Whether the next block begins a shot, before it is made; asked again where the block is made again.

        Raises InputError for a shot where the policy knows none.
        """
        if is_shot and self.policy.kind != "shots":
            raise InputError("switch", f"found shot, expected it with a memory as shots:8,window:32, not {self.policy}")
        self.shots = shot_rules.begun(self.shots, self.next_frame, is_shot)

    def kept(self, held: tuple[int, ...], start: int, frames: int, writes: bool, shots: Shots) -> tuple[int, ...]:
        """The held frames that stay when the block of `frames` latent frames at `start` arrives."""
        if self.policy.kind != "shots":
            return self.policy.kept(held, frames, self.origin)
        if writes and self.policy.clean_shots and shot_rules.starts_at(shots, start):
            held = shot_rules.kept_for_clean(self.policy, held, self.origin)
        return shot_rules.kept(self.policy, held, frames, self.origin, shots)

    def allocated(self, end_frame: int) -> Store:
        """The store, allocated or grown to hold frames up to `end_frame` (exclusive)."""
        needed = self.policy.slots(end_frame - self.origin)
        if self.store is None:
            slots = max(needed, self.policy.slots(self._frames_hint))
            self.store = new_store(self.policy, self.geometry, self.dtype, self.device, slots)
        elif self.store.slots < needed:
            roomy = int(self.store.slots * GROWTH_FACTOR)
            self.store.grow(max(needed, self.policy.slots(roomy)))
        return self.store

    def open_step(self, frames: int, step: int = 0, steps: int = 1) -> MemoryPass:
        """Begin a denoising step of a block of `frames`, which reads; a policy that keeps the last step's keys and
        values writes at each, and keeps those of the last."""
        if not self.policy.keeps_last_step:
            return self.open(read=frames)
        return self._open_overwriting(frames, steps, writes=step + 1 == steps)

    def _open_overwriting(
        self, frames: int, steps: int, writes: bool, starts: tuple[int, ...] | None = None
    ) -> OverwritePass:
        self.policy.check_block(frames)
        first = self.policy.position(self.next_frame - self.origin)
        return OverwritePass(
            self.policy, self.geometry, self.allocated(self.next_frame + frames), self._unfinished or self.overwritten,
            self.next_frame, frames, starts or (first,) * self.geometry.batch, steps, writes, starts is not None,
        )  # fmt: skip

    def open_stages(self, starts: Sequence[int]) -> MemoryPass:
        """Begin a forward of a stream batch: one latent frame for every stage, which all write. starts: their positions
        (`salt.video_in.stream_batch`)."""
        return self._open_overwriting(1, 1, True, tuple(starts))

    @property
    def is_rewound(self) -> bool:
        """Whether it has to be rebuilt before it is read: it was rewound, or a rebuild was interrupted."""
        return self.policy.rebuilt and not self.held and self.next_frame > self.origin

    @property
    def needs_history(self) -> bool:
        """Whether that takes the clean latents of its clip."""
        return self.is_rewound and not self.clean.frames

    def open(self, write: int | Sequence[int] = (), read: int = 0, start: int | None = None) -> MemoryPass:
        """Begin one forward of the model: clean blocks to write first, then a noisy block of `read` latent frames.

        Blocks follow one another from `next_frame` on. Frames that do not fit beside the new block are evicted now,
        at every denoising step. start: of a rebuild, the latent frame at which it starts; nothing older is kept.
        Raises ValueError when a block does not fit the policy.
        """
        blocks = [(n, True) for n in ([write] if isinstance(write, int) else write)] + [(read, False)] * (read > 0)
        if not blocks or any(n < 1 for n, _ in blocks):
            raise ValueError(f"memory pass: found blocks {[n for n, _ in blocks]}, expected at least one, each above 0")
        if len(blocks) > 1 and self.policy.kind == "blended":
            raise ValueError("memory pass: found several blocks, expected one at a time for a blended sink")
        if self.policy.keeps_last_step:
            if len(blocks) > 1:
                raise ValueError(f"memory pass: found {len(blocks)} blocks, expected one at a time for {self.policy}")
            return self._open_overwriting(blocks[0][0], 1, blocks[0][1])
        rebuilds = start is not None
        start, held = (start, ()) if start is not None else (self.next_frame, self.held)
        shots = self.shots
        store = self.allocated(start + sum(n for n, _ in blocks))
        segments = []
        surviving = set(held)
        for frames, writes in blocks:
            if not rebuilds:
                self.policy.check_block(frames)
            kept = self.kept(held, start, frames, writes, shots)
            if self.policy.kind == "blended":
                self._blend(store, held, kept)
            surviving &= set(kept)
            block = tuple(range(start, start + frames))
            if self.policy.kind == "shots":
                self.slots = shot_rules.placed(self.slots, kept, block)
            segments.append(self._segment(kept, block, writes))
            held = kept + block if writes else kept
            shots = shot_rules.written(shots, start, frames, self.policy.sink) if writes else shots
            start += frames
        # From here on evicted slots may be overwritten, so an interrupted forward must not find them in `held`.
        self.held = tuple(f for f in self.held if f in surviving)
        return MemoryPass(self.policy, self.geometry, store, segments)

    def _segment(self, kept: tuple[int, ...], block: tuple[int, ...], writes: bool) -> Segment:
        """Slots and rotary tables of a block that is read together with the `kept` frames."""
        g, policy = self.geometry, self.policy
        by_slot = sorted(kept, key=self.slot)
        together = sorted(kept + block, key=self.slot)
        slots = [self.slot(f) for f in together]

        def table(positions: list[int]) -> Rotary:
            return cached_rotary_table(tuple(positions), g.height, g.width, g.head_dim, self.device)

        block_positions = list(policy.block_positions(block[0], len(block), len(kept)))
        if self.shots:
            block_positions = shot_rules.positions(policy, self.shots, block)
        rank = {f: i for i, f in enumerate(sorted(kept) + list(block))}
        return Segment(
            frames=block,
            writes=writes,
            tokens=len(block) * g.tokens,
            block_slots=self.slot_index(block),
            kept_slots=self.slot_index(by_slot),
            read_slots=len(slots) if slots == list(range(len(slots))) else self.slot_index(together),
            rotary=table(block_positions),
            read_rotary=table([rank[f] for f in together]) if policy.relative else None,
            joined_rotary=table([rank[f] for f in by_slot] + block_positions) if policy.relative else None,
        )

    def commit(self, memory_pass: MemoryPass, context_sigma: float = 0.0) -> None:
        """After the forward: the blocks that it wrote are memory from now on. context_sigma: their noise level.

        Raises ValueError for a pass that does not start at `next_frame`.
        """
        if memory_pass.start_frame != self.next_frame and not self.policy.rebuilt:
            start = memory_pass.start_frame
            raise ValueError(f"commit: found a pass that starts at latent frame {start}, expected {self.next_frame}")
        if isinstance(memory_pass, OverwritePass):
            self._commit_overwriting(memory_pass)
            return
        for segment in memory_pass.segments:
            if segment.writes:
                start, frames = segment.frames[0], len(segment.frames)
                self.held = self.kept(self.held, start, frames, True, self.shots) + segment.frames
                self.shots = shot_rules.written(self.shots, start, frames, self.policy.sink)
                self.next_frame = segment.frames[-1] + 1
        self.context_sigma = context_sigma

    def _commit_overwriting(self, memory_pass: OverwritePass) -> None:
        segment = memory_pass.segments[0]
        if not segment.writes:
            self._unfinished = memory_pass.state
            return
        self.overwritten, self._unfinished = memory_pass.state, None
        self.next_frame = segment.frames[-1] + 1
        # Which frame a slot has is every layer's own; the first frames stand for the slots.
        self.held = tuple(range(self.origin, self.origin + max(self.overwritten.filled)))

    def _blend(self, store: Store, held: tuple[int, ...], kept: tuple[int, ...]) -> None:
        evicted = [f for f in held if f not in set(kept)]
        sink = [f for f in kept if f - self.origin < self.policy.sink]
        if evicted and len(evicted) == len(sink):
            store.blend(self.slot_index(sink), self.slot_index(evicted), self.policy.blend)

    def slot_index(self, frames: Sequence[int]) -> torch.Tensor:
        """Slots of `frames` as an int64 tensor [N], on the device of the buffers that it indexes."""
        slots = torch.tensor([self.slot(f) for f in frames], dtype=torch.int64)
        return slots if self.policy.residence == "cpu" else slots.to(self.device, non_blocking=True)

    def trim(self, frame: int) -> None:
        """Rewind: drop latent frame `frame` and all later ones; the next rollout continues there.

        Frames that a windowed policy has evicted do not come back; a memory that is rebuilt needs the clip's latents up
        to `frame` in the next rollout. Raises InputError outside [origin, next_frame].
        """
        if not self.origin <= frame <= self.next_frame:
            raise InputError("frame", f"found {frame}, expected {self.origin} to {self.next_frame}")
        if self.policy.keeps_last_step and self.origin < frame < self.next_frame:
            expected = f"{self.origin} or {self.next_frame}: slots are overwritten; go back by a saved memory or a fork"
            raise InputError("frame", f"found {frame}, expected {expected}")
        if self.policy.keeps_last_step and frame == self.origin:
            self.renew(frame, self.policy)
        if self.policy.rebuilt and frame < self.next_frame:
            self.held, self.clean = (), self.clean.rewound() if frame > self.origin else EMPTY
        self.held = tuple(f for f in self.held if f < frame)
        self.shots = shot_rules.begun(self.shots, frame, False)
        self.next_frame = frame

    def cut(self) -> None:
        """Drop all frames; positions continue, and the next frames become the sink (a hard scene change)."""
        self.renew(self.next_frame, self.policy)

    def renew(self, frame: int, policy: MemoryPolicy, shots: Shots = ()) -> None:
        """Drop all frames, to be written from latent frame `frame` on, and keep them by `policy` from now on.

        shots: of what is written again.
        """
        if policy != self.policy or policy.keeps_last_step:  # whose empty slots are read as zeros
            self.policy, self.store = policy, None
        self.held, self.slots, self.clean = (), {}, EMPTY
        self.shots = shots if policy.kind == "shots" else ()
        self.overwritten, self._unfinished = OverwriteState.empty(self.geometry), None
        self.origin = self.next_frame = frame

    def restart(self, frame: int, keep_sink: bool) -> None:
        """Prepare to re-encode the latent frames from `frame` on (recache), with the old sink or a new one.

        Raises InputError outside [origin, next_frame].
        """
        if not self.origin <= frame <= self.next_frame:
            raise InputError("frame", f"found {frame}, expected {self.origin} to {self.next_frame}")
        if self.policy.keeps_last_step:
            self.renew(frame, self.policy)
            return
        sinks = tuple(f for f in self.held if f - self.origin < self.policy.sink and f < frame)
        self.held = sinks if keep_sink else ()
        if not keep_sink:
            self.origin = frame
        self.next_frame = frame

    def fork(self) -> KVMemory:
        """An independent copy: same content, nothing mutable shared."""
        return self.copied(self.device)

    def copied(
        self, device: torch.device | str, heads: int | None = None, change: Callable[[Tensor], Tensor] = torch.clone
    ) -> KVMemory:
        """An independent copy with its buffers on `device`. heads: of the copy, whose buffers are `change` of these."""
        twin = self.empty_like()
        twin.geometry = replace(self.geometry, heads=heads or self.geometry.heads)
        twin.origin, twin.next_frame, twin.held = self.origin, self.next_frame, self.held
        twin.shots, twin.slots = self.shots, dict(self.slots)
        twin.context_sigma, twin.device = self.context_sigma, torch.device(device)
        twin.clean, twin.overwritten = self.clean.to(device), self.overwritten
        if self.store is not None:
            twin.store = new_store(self.policy, twin.geometry, self.dtype, twin.device, self.store.slots)
            for ours, theirs in zip(twin.store.buffers, self.store.buffers, strict=True):
                for to, source in zip(ours, theirs, strict=True):
                    to.copy_(source if heads is None else change(source))
        return twin

    def repeated(self, rows: int) -> KVMemory:
        """An independent copy for `rows` clips that all begin as this one, of a single clip; its memory is overwritten
        (`overwritten.py`)."""
        geometry = replace(self.geometry, batch=rows)
        twin = KVMemory(self.policy, geometry, self.dtype, self.device, None, self.fingerprint)
        twin.origin, twin.next_frame, twin.held = self.origin, self.next_frame, self.held
        twin.overwritten = self.overwritten.repeated(rows)
        if self.store is not None:
            for ours, theirs in zip(twin.allocated(self.next_frame).buffers, self.store.buffers, strict=True):
                for to, source in zip(ours, theirs, strict=True):
                    to.copy_(source)
        return twin

    def empty_like(self, device: torch.device | None = None) -> KVMemory:
        """An empty memory of the same kind (for the unconditional branch of guidance). device: another one."""
        hint = self._frames_hint or None
        return type(self)(self.policy, self.geometry, self.dtype, device or self.device, hint, self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"KVMemory({self.policy}, frames {len(self.held)} held of {self.next_frame}, {self.nbytes / 2**20:.1f} MiB)"
        )
