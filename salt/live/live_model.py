"""What a live session needs of its host: a model, its prompts, memories, noise and decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from ..memory import KVMemory, MemoryPolicy
from ..model_input import Condition, FlowModel
from ..noise import NoiseSource
from ..schedule import Schedule, Stepping
from ..spec import FPS
from .adapters import LoraStrength

if TYPE_CHECKING:
    from ..models.streaming_vae import FrameDecoder


@dataclass(frozen=True)
class LiveModelInfo:
    """Facts about the model and the size of its clips.

    fingerprint: of the model, with whatever else makes its latents. width, height: pixels. words: the vocabulary of a
    model that knows no others, () for text encoders. schedule, policy, stepping, shot_prefix: its own. loras: that
    are loaded beside its weights, with the strengths that they have before a session; the fingerprint is of all of them
    at strength 1. gives_first_frame: a picture that a clip begins with is the first frame of its first block. start:
    latent frame at which the session begins; joins: whether its frames go on from those of a clip before it.
    """

    fingerprint: str
    width: int
    height: int
    frames_per_block: int
    device: torch.device
    schedule: Schedule
    policy: MemoryPolicy
    independent_first_frame: bool = False
    temporal_scale: int = 4
    spatial_scale: int = 8
    channels: int = 16
    fps: float = FPS
    words: tuple[str, ...] = ()
    stepping: Stepping = "sde"
    shot_prefix: str = ""
    loras: tuple[LoraStrength, ...] = ()
    gives_first_frame: bool = False
    start: int = 0
    joins: bool = False

    def first_pixel_frame(self, latent_frame: int) -> int:
        """Pixel frame of the session at which a latent frame begins: what a decoder makes first is a single one."""
        return max((latent_frame - self.start) * self.temporal_scale - self._missing, 0)

    def latent_frame(self, seconds: float) -> int:
        """The latent frame that shows the moment `seconds` of the session."""
        return self.start + (int(seconds * self.fps + 1e-6) + self._missing) // self.temporal_scale

    @property
    def _missing(self) -> int:
        """Pixel frames that the first latent frame has fewer than the others."""
        return 0 if self.joins else self.temporal_scale - 1


class LiveModel(Protocol[Condition]):
    """A host of live sessions: `salt.live.pipeline_host` for pipelines, ComfyUI's in nodes/."""

    @property
    def info(self) -> LiveModelInfo: ...

    @property
    def model(self) -> FlowModel[Condition]: ...

    def check_prompt(self, text: str, field: str = "prompt") -> None:
        """Raise InputError about `field` for a text that cannot be encoded. Does not encode it."""
        ...

    def encode(self, text: str) -> Condition: ...

    @property
    def encode_beside(self) -> Callable[[str], Callable[[], Condition]] | None:
        """Encodes a text in another thread while blocks are made; what it returns gives the thread that makes blocks
        the conditioning that `encode` returns, without waiting. None where texts are encoded between blocks."""
        ...

    def mix(self, parts: Sequence[tuple[Condition, float]], method: Literal["linear", "slerp"]) -> Condition:
        """Two or more conditionings as one; their weights sum to 1 (see `prompt_blend.mix_tensors`)."""
        ...

    def new_memory(self, policy: MemoryPolicy) -> KVMemory:
        """An empty memory; nothing is allocated before its first use. Raises InputError for a policy that the model
        does not know."""
        ...

    def use_loras(self, loras: Sequence[LoraStrength]) -> None:
        """Let these of the loaded LoRAs act in the model's calls from now on, and no others."""
        ...

    def memory_fingerprint(self) -> str:
        """Of a memory that the model goes on writing with the LoRAs as they are now."""
        ...

    def noise(self, seed: int) -> NoiseSource: ...

    def new_decoder(self) -> FrameDecoder: ...

    def encode_image(self, pixels_B31HW: Tensor) -> Tensor:
        """Latents [B, C, 1, h, w] of a decoded frame in [-1, 1], for memories that are rebuilt."""
        ...
