"""The pack's socket types and the values they carry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from comfy_api.latest import io
from torch import Tensor

from ..salt.conditioning import Switch
from ..salt.memory import KVMemory
from ..salt.spec import FPS

Memory = io.Custom("SALT_MEMORY")
Policy = io.Custom("SALT_MEMORY_POLICY")
Prompts = io.Custom("SALT_PROMPTS")

# A CONDITIONING: (embedded text [B, L, D], options) for every entry.
Conditioning = list[tuple[Tensor, dict[str, Any]]]


class LatentSamples(TypedDict):
    samples: Tensor


class Latent(LatentSamples, total=False):
    """A LATENT. samples: [B, C, F, H, W] for a video, as the VAE reads them. salt_fps: of the student that made it."""

    noise_mask: Tensor
    salt_fps: int


@dataclass(frozen=True)
class TimedConditioning:
    """An entry of SALT_PROMPTS: from `seconds` of the clip on, `conditioning` is used.

    switch, keep_sink, first_block: as in `salt.conditioning.PromptChange`.
    """

    seconds: float
    conditioning: Conditioning
    switch: Switch
    keep_sink: bool = False
    first_block: Conditioning | None = None


class AppliedPrompts(list[TimedConditioning]):
    """A SALT_PROMPTS that a live session has applied. Its blocks were written to the memory by passes of their own, so
    a rollout that plays them again does not share passes between blocks either, and is equal to the bit."""


@dataclass(frozen=True)
class ClipMemory:
    """A SALT_MEMORY: the KV memory of a clip, and that of the unconditional branch where CFG was used.

    ComfyUI caches node outputs and passes one output to many nodes, so a memory on a wire is never written: a node
    that continues from it works on a copy. Between runs it lies in main memory, or on a device with room to spare
    (see `adapter.buffer_pool`).
    fps: frames of the clip per second. pixels_per_token: rows, and columns.
    """

    memory: KVMemory
    negative: KVMemory | None = None
    fps: int = FPS
    pixels_per_token: int = 16

    @property
    def branches(self) -> list[KVMemory]:
        """The conditional branch's memory, and the unconditional one's if there is one."""
        return [self.memory] if self.negative is None else [self.memory, self.negative]

    def copied(self, device: torch.device | str) -> ClipMemory:
        """A copy in buffers of its own on `device`, which may be written."""
        negative = None if self.negative is None else self.negative.copied(device)
        return replace(self, memory=self.memory.copied(device), negative=negative)
