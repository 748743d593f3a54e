"""A MODEL's own sampling, as nodes set it: ModelSamplingSD3's shift, ModelNoiseScale, and what is no flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...salt.noise import NoiseSource
from .patch_names import patch_name

if TYPE_CHECKING:
    from comfy.model_base import ModelSampling
    from comfy.model_patcher import ModelPatcher

PATCH = "model_sampling"  # of a MODEL's objects


def patched_sampling(model: ModelPatcher) -> ModelSampling | None:
    """The sampling that a node has set on this MODEL; None where it has its own."""
    return model.object_patches.get(PATCH)


def shift_of(sampling: ModelSampling) -> float:
    """The flow shift of a sampling of flow matching: sigma = shift u / (1 + (shift - 1) u)."""
    half = float(sampling.percent_to_sigma(0.5))
    return round(half / max(1 - half, 1e-9), 6)


def sampling_problem(model: ModelPatcher) -> tuple[str, str] | None:
    """The node and the rest of a sentence, where it has set a sampling other than flow matching; else None."""
    import comfy.model_sampling

    sampling = patched_sampling(model)
    if sampling is None or (isinstance(sampling, comfy.model_sampling.CONST) and float(sampling.sigma_max) <= 1):
        return None
    return patch_name(sampling), "sets another sampling than flow matching, which Wan 2.1 students are trained for"


def patched_shift(model: ModelPatcher) -> float | None:
    """The shift that a node (ModelSamplingSD3 and the like) has set on this MODEL; None where none has.

    Patches that keep the shift (ModelNoiseScale) set none.
    """
    sampling = patched_sampling(model)
    if sampling is None or sampling_problem(model) is not None:
        return None
    own = model.object_patches_backup.get(PATCH, model.model.model_sampling)
    shift = shift_of(sampling)
    return None if type(sampling) is type(own) and shift == shift_of(own) else shift


@dataclass(frozen=True)
class ScaledNoise:
    """A noise source times `scale`, as ModelNoiseScale asks for."""

    source: NoiseSource
    scale: float

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.source.seeds

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        return self.scale * self.source(start, frames, draw)


def noise_scale(model: ModelPatcher) -> float:
    """The scale of the noise that ModelNoiseScale has set on a MODEL; 1 where it has not."""
    return getattr(patched_sampling(model), "noise_scale", 1.0)


def scaled_noise(source: NoiseSource, model: ModelPatcher) -> NoiseSource:
    """The noise of a MODEL that nodes may have given another scale; `source` itself where none has."""
    scale = noise_scale(model)
    return source if scale == 1 else ScaledNoise(source, scale)
