"""What an acceleration preset changes of a pipeline's transformer, and when it may."""

from __future__ import annotations

import torch

from ..acceleration.presets import AccelerationPreset, Preference, compile_blocks, fp8_linears, store_weights
from ..errors import InputError
from ..models.transformer_salt import SaltTransformer3DModel
from .anyflow import check_preset
from .lora import adapter_state


def check_change(
    preference: Preference, preset: AccelerationPreset, before: AccelerationPreset, transformer: SaltTransformer3DModel
) -> None:
    """Raise InputError for a preset that this transformer, as `before` has left it, cannot have."""
    check_preset(preset, transformer)
    fixed = before.compiled or before.weights != "bf16"
    if fixed and preset != before:
        kind = "a compiled pipeline" if before.compiled else "a pipeline whose weights are stored otherwise"
        raise InputError("prefer", f"found {preference!r} on {kind}, expected a new pipeline")
    if (preset.fp8 or preset.weights != "bf16") and adapter_state(transformer):
        raise InputError("prefer", f"found {preference!r} with LoRA adapters, expected them merged (lora=) or fused")


def change_transformer(
    preset: AccelerationPreset, before: AccelerationPreset, transformer: SaltTransformer3DModel, device: torch.device
) -> None:
    """Quantise, compile and store the weights as a preset says."""
    if preset.fp8:
        fp8_linears(transformer)
    if preset.compiled and not before.compiled:
        compile_blocks(transformer)
    if preset.weights != before.weights:
        store_weights(transformer, preset.weights, device)
