"""Where the finished blocks of a rollout go: into a LATENT, or decoded into a video file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...salt.io.fragmented_file import FragmentedFile
from ...salt.memory.rewound import DECODER_WARM_UP
from .streaming_vae import ComfyStreamDecoder, load_again

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE


class BlockOutput(Protocol):
    """Takes latents [B, C, F, H, W] in the model's space, on its device, as they become final."""

    def begin(self, patcher: ModelPatcher, history: Tensor | None, frames_per_call: int) -> None:
        """history: the clip so far, of a clip that goes on. frames_per_call: latent frames in the largest forward."""
        ...

    def put(self, latents: Tensor) -> None: ...

    def latents(self) -> Tensor:
        """What is kept of them, at the end of the rollout."""
        ...


class KeptLatents:
    """All of them, on ComfyUI's intermediate device, usually the CPU."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def begin(self, patcher: ModelPatcher, history: Tensor | None, frames_per_call: int) -> None:
        """There is nothing to prepare."""

    def put(self, latents: Tensor) -> None:
        from comfy.model_management import intermediate_device

        # A CUDA device copies in the order of its stream while the host runs ahead.
        self.parts.append(latents.to(intermediate_device(), non_blocking=latents.is_cuda))

    def latents(self) -> Tensor:
        return torch.cat(self.parts, dim=2)


class VideoOutput:
    """Decodes them as Salt Decode does, and writes the frames to a file; keeps the latest block alone.

    It is a preview decoder as well, for the frames of the latest block.
    """

    def __init__(self, file: FragmentedFile, vae: VAE) -> None:
        self.file, self.decoder, self.fps = file, ComfyStreamDecoder(vae), file.fps
        self.frames = self.latest = torch.empty(0)

    def begin(self, patcher: ModelPatcher, history: Tensor | None, frames_per_call: int) -> None:
        self.patcher, self.frames_per_call = patcher, frames_per_call
        if history is not None and history.shape[2]:  # so that the new frames join those before without a seam
            self._decoded(history[:, :, -DECODER_WARM_UP:].to(patcher.load_device))

    def put(self, latents: Tensor) -> None:
        self.latest, self.frames = latents, self._decoded(latents)
        pixels = (self.frames * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        self.file.write(pixels.cpu().numpy())

    def _decoded(self, latents: Tensor) -> Tensor:
        """Frames [T, 3, H, W] in [0, 1]."""
        parts = self.patcher.model.process_latent_out(latents.to(torch.float32)).split(1, dim=2)
        frames = torch.cat([self.decoder.decode_frame(part)[0] for part in parts], dim=1).transpose(0, 1)
        load_again(self.patcher, latents, self.frames_per_call)
        return frames

    def latents(self) -> Tensor:
        from comfy.model_management import intermediate_device

        return self.latest.to(intermediate_device())

    def decode(self, latents: Tensor) -> Tensor:
        """For previews: the frames of the block that was put last."""
        return self.frames
