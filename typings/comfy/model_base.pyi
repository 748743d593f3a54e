from collections.abc import Callable

import torch
from torch import Tensor, nn

from .latent_formats import LatentFormat
from .ldm.wan.model import WanModel

class ModelSampling(nn.Module):
    def timestep(self, sigma: Tensor) -> Tensor: ...

class BaseModel(nn.Module):
    diffusion_model: WanModel
    latent_format: LatentFormat
    manual_cast_dtype: torch.dtype | None
    model_sampling: ModelSampling
    # Methods, which the pack replaces on an instance for the length of a call.
    process_timestep: Callable[..., Tensor]
    memory_required: Callable[..., float]
    def get_dtype(self) -> torch.dtype: ...
    def process_latent_in(self, latent: Tensor) -> Tensor: ...
    def process_latent_out(self, latent: Tensor) -> Tensor: ...
