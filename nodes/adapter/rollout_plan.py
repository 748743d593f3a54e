"""What a rollout of the nodes is to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.block_plan import RolloutSettings, block_lengths, count_model_calls
from ...salt.conditioning import PromptChange
from ...salt.memory import MemoryPolicy
from ...salt.models.pixel_stream import FrameEncoder
from ...salt.video_in.motion import MotionNoise
from ...salt.video_in.strength import Strength, settings_at
from ..io_types import ClipMemory, Conditioning
from .source_clip import SourceClip

if TYPE_CHECKING:
    from comfy.sd import VAE


@dataclass(frozen=True)
class RolloutPlan:
    """A rollout to run. size: latent (height, width). frames: new latent frames. fps: frames of the clip per second.
    negative: for guidance.

    notes: on inputs that have no effect, for the report.
    start: latents [B, C, F, H, W], as a LATENT holds them, that the clip starts with; given_frame: [B, C, 1, H, W], the
    first one of its first block, for students that take it so. memory: of a clip to continue; history: the clip so far,
    which a prompt change that recaches needs. vae: for previews. source: of a video
    whose blocks start the clip's at `strength`.
    """

    settings: RolloutSettings
    policy: MemoryPolicy
    prompts: Sequence[PromptChange[Conditioning]]
    frames: int
    size: tuple[int, int]
    seed: int
    fps: int
    batch: int = 1
    negative: Conditioning | None = None
    start: Tensor | None = None
    given_frame: Tensor | None = None
    memory: ClipMemory | None = None
    history: Tensor | None = None
    vae: VAE | None = None
    notes: Sequence[str] = ()
    source: SourceClip | None = None
    strength: float = 1.0

    @property
    def copies(self) -> bool:
        """Whether a source video's latents are the clip: at a strength at which no step runs."""
        if self.source is None or self.settings.schedule.rule == "streamdiffusion2":
            return self.source is not None and self.strength == 0
        return settings_at(self.settings, self.strength) is None

    def video(self, encoder: FrameEncoder | None, device: torch.device) -> Strength | MotionNoise | None:
        """How the blocks start from the source video; None without one. encoder: for latents that are not there yet."""
        if self.source is None:
            return None
        latents, motion = self.source.opened(encoder, device)
        if self.settings.schedule.rule == "streamdiffusion2":
            return MotionNoise(latents, motion, self.strength)
        return Strength(latents, self.strength)

    @property
    def first_frame(self) -> int:
        """Latent frame of the clip at which the rollout starts."""
        return 0 if self.memory is None else self.memory.memory.next_frame

    @property
    def start_frames(self) -> int:
        return 0 if self.start is None else self.start.shape[2]

    @property
    def end(self) -> int:
        """Latent frame of the clip at which the rollout ends."""
        return self.first_frame + self.start_frames + self.frames

    @property
    def blocks(self) -> list[int]:
        """Lengths of the new blocks, in latent frames."""
        return block_lengths(self.first_frame + self.start_frames, self.frames, self.settings)

    @property
    def frames_per_call(self) -> int:
        """Latent frames in the largest forward: a block, two in a fused pass, all that a recache encodes again."""
        frames = max(self.blocks) * (2 if self.settings.fuse else 1)
        if self.policy.rebuilt:
            frames = max(frames, self.policy.window or 0)
        if any(change.switch == "recache" for change in self.prompts):
            before = self.first_frame + self.start_frames + self.frames - self.blocks[-1]
            frames = max(frames, min(self.policy.window or before, before))
        return frames

    @property
    def model_calls(self) -> int:
        """Model calls as a progress bar counts them."""
        if self.copies:
            return len(self.blocks)
        begins = self.memory is None and self.source is None
        return count_model_calls(len(self.blocks), self.settings, self.policy, self.start_frames, begins=begins)

    def calls_after(self, before: int, made: int) -> int:
        """Model calls of a run that goes on from an earlier one: after its first `before` blocks the memory is there,
        the next `made` are only encoded."""
        new = len(self.blocks) - before - made
        if self.copies:
            return made + new
        return made + (count_model_calls(new, self.settings, self.policy) if new else 0)
