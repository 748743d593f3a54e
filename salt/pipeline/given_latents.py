"""Latents that a caller gives, checked before they are used; errors say their size in pixels and frames besides."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError
from .components import PipelineComponents
from .inputs import PipelineInputs

GIVEN = ("latents", "initial_latents", "history_latents")


def check_axes(inputs: PipelineInputs) -> None:
    """Raise InputError for latents without the axes [B, C, F, H, W], and latents of a past without a memory."""
    for name in GIVEN:
        latents: Tensor | None = getattr(inputs, name)
        if latents is not None and (latents.ndim != 5 or 0 in latents.shape):
            found = list(latents.shape)
            raise InputError(name, f"found shape {found}, expected [batch, channels, frames, height, width]")
    if inputs.history_latents is not None and inputs.memory is None:
        raise InputError("history_latents", "needs `memory`, the memory of the clip that they end")


def check_size(components: PipelineComponents, name: str, latents: Tensor, expected: tuple[int, ...]) -> None:
    """Raise InputError unless the latents are of this size. expected: (B, C, F, H, W); F 0 stands for any number."""
    shape = (*expected[:2], expected[2] or latents.shape[2], *expected[3:])
    if tuple(latents.shape) != shape:
        found, wanted = (_in_pixels(components, x) for x in (latents.shape, shape))
        raise InputError(name, f"found shape {tuple(latents.shape)}, expected {shape}: {found}, in place of {wanted}")


def _in_pixels(components: PipelineComponents, shape: Sequence[int]) -> str:
    scale, per_latent = components.spatial_scale, components.temporal_scale
    many = f"{shape[0]} clip{'s' if shape[0] != 1 else ''}"
    return f"{many} of {shape[2] * per_latent} frames, {shape[4] * scale}x{shape[3] * scale} pixels"
