from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .model_patcher import ModelPatcher

class WanVAE(nn.Module):
    conv1: nn.Module
    conv2: nn.Module
    encoder: nn.Module
    decoder: nn.Module

class VAE:
    first_stage_model: WanVAE
    patcher: ModelPatcher
    device: torch.device
    output_device: torch.device
    vae_dtype: torch.dtype
    latent_channels: int
    latent_dim: int
    disable_offload: bool
    memory_used_encode: Callable[[tuple[int, ...], torch.dtype], float]
    memory_used_decode: Callable[[tuple[int, ...], torch.dtype], float]
    process_output: Callable[[Tensor], Tensor]
    def __init__(self, sd: dict[str, Tensor]) -> None: ...
    def encode(self, pixel_samples: Tensor) -> Tensor: ...
    def decode(self, samples_in: Tensor) -> Tensor: ...

class CLIP:
    cond_stage_model: object
    def __init__(self, target: object, *, model_options: dict[str, Any] = ...) -> None: ...
    def tokenize(self, text: str) -> object: ...
    def encode_from_tokens_scheduled(self, tokens: object) -> list[tuple[Tensor, dict[str, Any]]]: ...

def load_diffusion_model_state_dict(
    sd: dict[str, Tensor],
    model_options: dict[str, Any] = ...,
    metadata: dict[str, str] | None = ...,
    disable_dynamic: bool = ...,
) -> ModelPatcher | None: ...
