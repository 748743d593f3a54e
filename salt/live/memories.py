"""What a live session computes with between blocks: its memories and its decoder, and snapshots of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from ..block_plan import Block, BlockSource
from ..errors import InputError
from ..memory.rewound import DECODER_WARM_UP
from ..memory.snapshot import MemorySnapshot
from ..model_input import Condition
from ..models.async_decoder import AsyncDecoder, PendingFrames
from ..models.head_encoder import HeadEncoder, LatestPixels
from ..rollout import rollout_from
from .history import Snapshot
from .live_model import LiveModel, LiveModelInfo
from .start import LiveStart
from .steering import Steering


class LiveMemories(Generic[Condition]):
    """Memory, unconditional memory and decoder of a session, at one moment of one branch.

    info: the session's. first: how its first block is made. decodes: whether blocks are decoded; a memory that encodes
    decoded frames again needs it. Raises InputError where the start does not fit the model.
    """

    def __init__(
        self,
        live_model: LiveModel[Condition],
        info: LiveModelInfo,
        first: Steering,
        decodes: bool,
        start: LiveStart | None,
    ) -> None:
        self.live_model, self.start, self.device = live_model, start, info.device
        self.first_policy = first.policy
        if start is None:
            self.memory = live_model.new_memory(first.policy)
        else:
            self.memory = start.empty_memory(live_model, info, first)
        self.negative_memory = self.memory.empty_like()
        decodes = decodes or first.policy.reencodes
        self.decoding = AsyncDecoder(live_model.new_decoder(), info.device) if decodes else None
        self._latest = LatestPixels(lambda latents: self.needed_decoder().begin(latents))
        self._reencode = HeadEncoder(self._latest, live_model.encode_image, info.temporal_scale)

    def needed_decoder(self) -> AsyncDecoder:
        """Raises InputError where nothing is decoded."""
        if self.decoding is None:
            raise InputError(
                "policy", "found one that encodes decoded frames again, and nothing is decoded without a video"
            )
        return self.decoding

    def rollout(self, source: BlockSource[Condition]) -> Iterator[Block]:
        memories = (self.memory, self.negative_memory)
        return rollout_from(self.live_model.model, source, *memories, reencode=self._reencode)

    def decoded(self, block: Block) -> PendingFrames | None:
        pending = None if self.decoding is None else self.decoding.begin(block.latents)
        if pending is not None and self.memory.policy.reencodes:
            self._latest.keep(block.latents, pending)
        return pending

    @property
    def snapshot_bytes(self) -> int:
        """Of a snapshot that is taken now, about."""
        return self.memory.estimate_bytes(len(self.memory.held)) + (
            0 if self.decoding is None else self.decoding.decoder.nbytes
        )

    def snapshot(self, follows: bool) -> Snapshot:
        """follows: the unconditional memory holds the same blocks."""
        negative = MemorySnapshot.of(self.negative_memory) if follows else None
        decoder = None if self.decoding is None else self.decoding.fork()
        return Snapshot(MemorySnapshot.of(self.memory), negative, decoder)

    def restore(self, snapshot: Snapshot | None) -> None:
        """None: the clip's beginning."""
        if snapshot is None:
            self.memory.renew(0, self.first_policy)
        else:
            snapshot.memory.restore(self.memory)
        if snapshot is None or snapshot.negative is None:
            self.negative_memory.renew(0, self.memory.policy)
        else:
            snapshot.negative.restore(self.negative_memory)
        if self.decoding is not None:
            decoder = None if snapshot is None else snapshot.decoder
            self.decoding.decoder = self.live_model.new_decoder() if decoder is None else decoder.fork()
            if decoder is None and self.start is not None and self.start.recent is not None:
                self.decoding.begin(self.start.recent[:, :, -DECODER_WARM_UP:].to(self.device))
