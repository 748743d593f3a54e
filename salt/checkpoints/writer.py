"""The checkpoint room's writer: a model into Wan's names or a diffusers folder, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel, __version__

from ..spec import StudentSpec
from .errors import CheckpointError, some
from .tensor_files import atomic_file, write_safetensors
from .wan_keys import bare, to_wan

# What core ComfyUI assumes of every Wan model; only what differs needs saying. It hands the rest to its model class,
# so nothing may be said that the class does not take.
COMFY_ASSUMES = {"text_dim": 4096, "freq_dim": 256, "eps": 1e-6}


def save_wan(
    model: WanTransformer3DModel,
    path: str | Path,
    *,
    spec: StudentSpec | None = None,
    dtype: torch.dtype | None = None,
    causal_ar: bool = True,
) -> Path:
    """Write `model` as one safetensors file in Wan's names, which ComfyUI's loaders and `read_checkpoint` read.

    The metadata `config` tells core ComfyUI that the model is autoregressive (`causal_ar`; never said of an
    image-to-video model, which core 0.27 then fails to build) and what its shapes cannot tell; `salt` holds `spec`.
    `dtype` converts all weights as they are written. Replaces a file at `path` in one step.

    Raises `CheckpointError` if the model is no Wan transformer or the file cannot be written.
    """
    path = Path(path)
    weights = _weights(model)
    names = {name: to_wan(name) for name in weights}
    foreign = [name for name, wan in names.items() if wan is None]
    if foreign:
        raise CheckpointError(f"{path}: not written: the model has weights that Wan has no name for: {some(foreign)}")
    metadata = {**comfy_metadata(model.config, causal_ar), **_spec_metadata(spec)}
    _write(path, {names[name] or name: tensor for name, tensor in weights.items()}, dtype, metadata)
    return path


def comfy_metadata(config: Mapping[str, Any], causal_ar: bool) -> dict[str, str]:
    """What core ComfyUI cannot see in a model's shapes, as it reads it from a file's metadata (0.27)."""
    said: dict[str, Any] = {k: config[k] for k, assumed in COMFY_ASSUMES.items() if config.get(k, assumed) != assumed}
    if config["attention_head_dim"] != 128:
        said["num_heads"] = config["num_attention_heads"]
    if causal_ar and config["in_channels"] == config["out_channels"]:
        said["causal_ar"] = True
    return {"config": json.dumps({"transformer": said})}


def save_diffusers(
    model: WanTransformer3DModel,
    folder: str | Path,
    *,
    spec: StudentSpec | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write `model` as a diffusers folder (config.json and one safetensors file), which diffusers' own class loads.

    Each file is replaced in one step; other files in `folder` stay. `spec` and `dtype` as for `save_wan`.
    """
    folder = Path(folder)
    _write(folder / "diffusion_pytorch_model.safetensors", _weights(model), dtype, _spec_metadata(spec))
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config = {"_class_name": "WanTransformer3DModel", "_diffusers_version": __version__, **config}
    with atomic_file(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return folder


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {bare(name): tensor for name, tensor in model.state_dict().items()}


def _write(
    path: Path, weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None, metadata: dict[str, str]
) -> None:
    layout = {name: (tuple(tensor.shape), dtype or tensor.dtype) for name, tensor in weights.items()}
    write_safetensors(path, layout, weights.__getitem__, metadata)


def _spec_metadata(spec: StudentSpec | None) -> dict[str, str]:
    if spec is None:
        return {}
    return {"salt": json.dumps(spec.to_dict())}
