"""Decoded frames of a clip, encoded again by ComfyUI's Wan VAE, for memories that are rebuilt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.memory import MemoryPolicy
from ...salt.memory.clean_latents import Reencode
from ...salt.memory.rewound import DECODER_WARM_UP
from ...salt.models.head_encoder import HeadEncoder
from .block_outputs import BlockOutput, VideoOutput
from .streaming_vae import ComfyStreamDecoder, ComfyStreamEncoder, load_again

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE


def needs_vae(policy: MemoryPolicy) -> InputError:
    """The error where no VAE is connected."""
    return InputError(
        "vae",
        f"must be connected: the memory {policy} decodes frames and encodes them again; {policy},keep (rebuilt, first "
        "frame kept) needs none",
    )


def encode_image(vae: VAE, pixels_B31HW: Tensor) -> Tensor:
    """Latents [B, C, 1, h, w] of an image in [-1, 1], in the model's space."""
    return ComfyStreamEncoder(vae).encode(pixels_B31HW)


def head_encoder(
    vae: VAE, patcher: ModelPatcher, frames_per_call: int, output: BlockOutput, before: list[Tensor]
) -> Reencode:
    """before: latents [B, C, F, H, W] of the clip, in the model's space, that the rollout does not make.

    frames_per_call: latent frames in the MODEL's largest forward. Raises InputError for a VAE that is not Wan 2.1's.
    """
    decoder, unseen = ComfyStreamDecoder(vae), [*before]

    def pixels_of(latents: Tensor) -> Tensor:
        if isinstance(output, VideoOutput) and output.latest is latents and latents.shape[0] == 1:
            return output.frames.transpose(0, 1)[None] * 2 - 1
        if unseen:
            clip = torch.cat([x.to(latents) for x in unseen], dim=2)[:, :, -DECODER_WARM_UP:]
            unseen.clear()
            decoder.decode(clip)
        return decoder.decode(latents)

    def encoded(pixels: Tensor) -> Tensor:
        latents = encode_image(vae, pixels)
        load_again(patcher, latents, frames_per_call)
        return latents

    return HeadEncoder(pixels_of, encoded, decoder.temporal_scale)
