"""The checkpoint room's dictionary for autoencoders: diffusers' names of Wan 2.1's VAE in Wan's own (ComfyUI's)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .errors import CheckpointError, some

TOP = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
ENDS = {"conv_in": "conv1", "conv_out": "head.2", "norm_out": "head.0"}
MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
STAGE = 4  # layers of a decoder stage: three residual blocks and the upsampler


def vae_to_wan(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights of an `AutoencoderKLWan` (Wan 2.1's kind, two residual blocks a stage) under Wan's names.

    Raises CheckpointError, naming `where` and the weights, for any that Wan has no name for.
    """
    named = {name: _wan_name(name) for name in state}
    foreign = [name for name, wan in named.items() if wan is None]
    if foreign or len(set(named.values())) < len(named):
        raise CheckpointError(f"{where}: found {some(foreign or list(named))}, expected the weights of a Wan 2.1 VAE")
    return {wan: state[name] for name, wan in named.items() if wan}


def _wan_name(name: str) -> str | None:
    module, _, leaf = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{leaf}"
    side, _, rest = module.partition(".")
    if side not in ("encoder", "decoder"):
        return None
    if rest in ENDS:
        return f"{side}.{ENDS[rest]}.{leaf}"
    if found := re.fullmatch(r"mid_block\.(\w+\.\d)\.(\w+)", rest):
        inner = found[2] if found[1].startswith("attentions") else RESIDUAL.get(found[2])
        return f"{side}.{MIDDLE[found[1]]}.{inner}.{leaf}" if found[1] in MIDDLE and inner else None
    if found := re.fullmatch(r"down_blocks\.(\d+)\.([\w.]+)", rest):
        return _layer(f"{side}.downsamples.{found[1]}", found[2], leaf)
    if found := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.([\w.]+)", rest):
        place = STAGE - 1 if found[2] == "upsamplers" else int(found[3])
        return _layer(f"{side}.upsamples.{STAGE * int(found[1]) + place}", found[4], leaf)
    return None


def _layer(owner: str, inner: str, leaf: str) -> str | None:
    if inner in ("resample.1", "time_conv"):
        return f"{owner}.{inner}.{leaf}"
    return f"{owner}.{RESIDUAL[inner]}.{leaf}" if inner in RESIDUAL else None
