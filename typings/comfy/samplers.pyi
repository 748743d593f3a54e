from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .model_base import BaseModel
from .model_patcher import ModelPatcher

class Sampler: ...

class CFGGuider:
    model_patcher: ModelPatcher
    inner_model: BaseModel
    conds: dict[str, list[dict[str, Any]]]
    cfg: float
    def __init__(self, model_patcher: ModelPatcher) -> None: ...
    def inner_set_conds(self, conds: Mapping[str, list[tuple[Tensor, dict[str, Any]]]]) -> None: ...
    def __call__(self, x: Tensor, timestep: Tensor, *, model_options: dict[str, Any], seed: int | None) -> Tensor: ...
    def set_cfg(self, cfg: float) -> None: ...
    def sample(
        self, noise: Tensor, latent_image: Tensor, sampler: Sampler, sigmas: Tensor, *, seed: int | None = ...
    ) -> Tensor: ...

def calc_cond_batch(
    model: BaseModel,
    conds: list[list[dict[str, Any]]],
    x_in: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> list[Tensor]: ...
def process_conds(
    model: BaseModel,
    noise: Tensor,
    conds: dict[str, list[dict[str, Any]]],
    device: object,
    latent_image: Tensor | None = ...,
    denoise_mask: Tensor | None = ...,
    seed: int | None = ...,
) -> dict[str, list[dict[str, Any]]]: ...
