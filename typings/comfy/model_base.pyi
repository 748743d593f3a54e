from collections.abc import Callable

import torch
from torch import Tensor, nn

from .latent_formats import LatentFormat
from .ldm.wan.model import WanModel

class ModelSampling(nn.Module):
    noise_scale: float
    sigma_max: Tensor
    def timestep(self, sigma: Tensor) -> Tensor: ...
    def percent_to_sigma(self, percent: float) -> float: ...

class BaseModel(nn.Module):
    diffusion_model: WanModel
    latent_format: LatentFormat
    manual_cast_dtype: torch.dtype | None
    model_sampling: ModelSampling
    # Methods, which the pack replaces on an instance for the length of a call.
    process_timestep: Callable[..., Tensor]
    memory_required: Callable[..., float]
    apply_model: Callable[..., Tensor]
    def get_dtype(self) -> torch.dtype: ...
    def process_latent_in(self, latent: Tensor) -> Tensor: ...
    def process_latent_out(self, latent: Tensor) -> Tensor: ...
