"""What a live session begins with: latents of a picture or video, or a clip that it goes on from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..block_plan import RolloutSettings, context_lengths
from ..errors import InputError
from ..memory import KVMemory, MemoryPolicy
from ..memory.far import FarMemory
from ..memory.snapshot import MemorySnapshot
from ..models.async_decoder import most_latents_for_extension
from .history import KeptBlock, Snapshot
from .live_model import LiveModel, LiveModelInfo
from .steering import Steering

GUIDED = 2.0  # any scale but 1: the unconditional branch has followed
DIGITS = 32  # of a digest, hexadecimal
PIECES, PIECE_BYTES = 64, 2**14  # of a large tensor, evenly spaced, for its digest


@dataclass(frozen=True, eq=False)
class LiveStart:
    """What a live session begins with; nothing of it is changed.

    latents: [1, C, F, H, W], clean, in the model's space: the first frames of a new clip. Or memory, negative: of a
    clip that the session goes on from; negative is that of the unconditional branch, which guidance needs. history:
    [1, C, F, H, W], the latest latents of that clip, up to `memory.next_frame`: with them the frames join without a
    seam, and prompts can recache.
    Raises InputError unless there is one of latents and memory.
    """

    latents: Tensor | None = None
    memory: KVMemory | None = None
    negative: KVMemory | None = None
    history: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.latents is None) == (self.memory is None):
            raise InputError("start", "expected the latents of a new clip, or the memory of one to go on from")
        if self.memory is None and (self.negative is not None or self.history is not None):
            raise InputError(
                "history" if self.negative is None else "negative_memory", "has no effect without `memory`"
            )

    @property
    def kind(self) -> Literal["latents", "memory"]:
        return "latents" if self.memory is None else "memory"

    @property
    def frame(self) -> int:
        """Latent frame at which the session begins."""
        return 0 if self.memory is None else self.memory.next_frame

    @cached_property
    def recent(self) -> Tensor | None:
        """The latents before the session that can be needed; None without any."""
        if self.memory is None or self.history is None or not self.history.shape[2]:
            return None
        most = most_latents_for_extension(self.memory.policy)
        return self.history[:, :, -most:] if most else self.history

    @cached_property
    def digest(self) -> str:
        """A hash of its content, by which a replay knows it again."""
        sha = hashlib.sha256(self.kind.encode())
        tensors = [x for x in (self.latents, self.recent) if x is not None]
        for memory in (self.memory, self.negative):
            if memory is not None:
                sha.update(repr((str(memory.policy), memory.origin, memory.held, memory.context_sigma)).encode())
                if memory.policy.kind in ("shots", "overwrite"):
                    sha.update(repr((memory.shots, memory.overwritten)).encode())
        kept = (t for m in (self.memory, self.negative) if m is not None for t in _kept_tensors(m))
        for tensor in itertools.chain(tensors, kept):
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(_evenly_spaced_bytes(tensor))
        return sha.hexdigest()[:DIGITS]

    def session_info(self, info: LiveModelInfo) -> LiveModelInfo:
        """Of the session: its pixel frames count from its own beginning."""
        return replace(info, start=self.frame, joins=self.recent is not None)

    def policy(self, own: MemoryPolicy) -> MemoryPolicy:
        """The policy of the session's memory where its settings name none. own: the student's."""
        return own if self.memory is None else self.memory.policy

    def empty_memory(self, live_model: LiveModel, info: LiveModelInfo, steering: Steering) -> KVMemory:
        """The session's own, before anything is in it. info: the session's. steering: of the first block.

        Raises InputError where the start does not fit the model, the size or the settings.
        """
        live_model.use_loras(steering.loras)
        expected, fingerprint = live_model.new_memory(steering.policy), live_model.memory_fingerprint()
        for field, memory in (("memory", self.memory), ("negative_memory", self.negative)):
            if memory is not None:
                memory.check_fits(expected.geometry, fingerprint, field)
                memory.check_free(field)
                if memory.is_rewound:
                    raise InputError(
                        field,
                        f"was rewound, and {memory.policy} is rebuilt from the clip's latents: extend it by a block "
                        "with `salt generate` or Salt Rollout first",
                    )
        if self.negative is not None and self.negative.next_frame != self.frame:
            raise InputError(
                "negative_memory",
                f"holds {self.negative.next_frame} latent frames, and `memory` {self.frame}, expected the same clip's",
            )
        if self.memory is not None and steering.guidance != 1.0:
            if self.negative is None and self.recent is None:
                raise InputError("guidance", "needs the memory of a guided clip", steering.guidance)
        shape = (1, info.channels, info.height // info.spatial_scale, info.width // info.spatial_scale)
        for field, x in (("latents", self.latents), ("history", self.history)):
            if x is not None and (x.ndim != 5 or (*x.shape[:2], *x.shape[3:]) != shape):
                expected_shape = f"[{shape[0]}, {shape[1]}, F, {shape[2]}, {shape[3]}]"
                raise InputError(field, f"found shape {list(x.shape)}, expected {expected_shape}")
        if self.memory is None:
            return expected
        if steering.policy != self.memory.policy:
            found = f"{steering.policy} does not fit the memory, whose own is {self.memory.policy}"
            raise InputError("policy", found)
        return self.memory.empty_like(info.device)

    def first_frame(self, info: LiveModelInfo) -> Tensor | None:
        """The picture, where it is the first frame of the first block."""
        is_picture = self.latents is not None and self.latents.shape[2] == 1
        return self.latents if info.gives_first_frame and is_picture else None

    def known(self, frame: int, settings: RolloutSettings) -> Tensor | None:
        """The latents of the block at latent frame `frame`, where the session begins with them."""
        at = 0
        for length in () if self.latents is None else context_lengths(self.latents.shape[2], settings):
            if at == frame and self.latents is not None:
                return self.latents[:, :, at : at + length]
            at += length
        return None

    def clip_before(self, steering: Steering, settings: RolloutSettings) -> KeptBlock | None:
        """The clip that the session goes on from, as its last block, whose snapshot is the memory; None for a new one.

        steering: of the session's first block.
        """
        memory, negative = self.memory, self.negative
        if memory is None:
            return None
        guidance = 1.0 if negative is None else GUIDED
        choice = replace(steering.choose()[0], guidance=guidance, policy=memory.policy, switch="keep")
        latents = torch.empty(1, 1, 0, 1, 1) if self.recent is None else self.recent.cpu()
        frames = context_lengths(latents.shape[2], settings) or [0]
        stop, block = self.frame - sum(frames), None
        for number, part in zip(range(-len(frames), 0), latents.split(frames, dim=2), strict=True):
            start, stop = stop, stop + part.shape[2]
            block = KeptBlock(
                number, -1, start, stop, memory.origin, choice, steering, part, block, cut_off=block is None, given=True
            )
        if block is not None:
            second = None if negative is None else MemorySnapshot.of(negative)
            block.snapshot = Snapshot(MemorySnapshot.of(memory), second, None)
        return block


def _kept_tensors(memory: KVMemory) -> Iterator[Tensor]:
    if memory.store is not None and memory.held:
        index = memory.slot_index(memory.held)
        for layer in memory.store.buffers:
            yield from (buffer.index_select(1, index.to(buffer.device)) for buffer in layer)
    yield from memory.clean.named().values()
    if isinstance(memory, FarMemory):
        yield from (x for layer in memory.context.layers for x in layer)


def _evenly_spaced_bytes(tensor: Tensor) -> bytes:
    """All bytes of a small tensor; of a large one pieces, so that a change to the clip is seen in one of them."""
    stored = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    if stored.numel() > PIECES * PIECE_BYTES:
        last = stored.numel() - PIECE_BYTES
        stored = torch.cat([stored[at : at + PIECE_BYTES] for at in (last * i // (PIECES - 1) for i in range(PIECES))])
    return stored.numpy().tobytes()
