"""Names of the Wan 2.1 VAE's weights: from diffusers' spelling to Wan's own, which ComfyUI reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .tensor_files import CheckpointError, shorten

TOP_LEVEL = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
OUTER = {"conv_in": "conv1", "conv_out": "head.2", "norm_out": "head.0"}
MID_BLOCK = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
LAYERS_PER_STAGE = 4  # of the decoder: three residual blocks and the upsampler


def vae_to_wan(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights of an `AutoencoderKLWan` (Wan 2.1, two residual blocks per stage) under Wan's names.

    Raises CheckpointError, naming the file `where` and the weights, for weights that a Wan 2.1 VAE does not have.
    """
    named = {name: _wan_name(name) for name in state}
    foreign = [name for name, wan in named.items() if wan is None]
    if foreign or len(set(named.values())) < len(named):
        raise CheckpointError(
            f"{where}: found {shorten(foreign or list(named))}; expected the weights of a Wan 2.1 VAE"
        )
    return {wan: state[name] for name, wan in named.items() if wan}


def _wan_name(name: str) -> str | None:
    module, _, leaf = name.rpartition(".")
    if module in TOP_LEVEL:
        return f"{TOP_LEVEL[module]}.{leaf}"
    side, _, rest = module.partition(".")
    if side not in ("encoder", "decoder"):
        return None
    if rest in OUTER:
        return f"{side}.{OUTER[rest]}.{leaf}"
    if match := re.fullmatch(r"mid_block\.(\w+\.\d)\.(\w+)", rest):
        inner = match[2] if match[1].startswith("attentions") else RESIDUAL.get(match[2])
        return f"{side}.{MID_BLOCK[match[1]]}.{inner}.{leaf}" if match[1] in MID_BLOCK and inner else None
    if match := re.fullmatch(r"down_blocks\.(\d+)\.([\w.]+)", rest):
        return _layer(f"{side}.downsamples.{match[1]}", match[2], leaf)
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.([\w.]+)", rest):
        index = LAYERS_PER_STAGE - 1 if match[2] == "upsamplers" else int(match[3])
        return _layer(f"{side}.upsamples.{LAYERS_PER_STAGE * int(match[1]) + index}", match[4], leaf)
    return None


def _layer(owner: str, inner: str, leaf: str) -> str | None:
    if inner in ("resample.1", "time_conv"):
        return f"{owner}.{inner}.{leaf}"
    return f"{owner}.{RESIDUAL[inner]}.{leaf}" if inner in RESIDUAL else None
