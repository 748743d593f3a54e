"""Write a model as one safetensors file with Wan's names or as a diffusers folder, atomically."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from diffusers import WanTransformer3DModel, __version__

from ..io.atomic import atomic_write
from ..spec import WAN22_CHANNELS, StudentSpec
from .tensor_files import CheckpointError, shorten
from .trained_size import size_metadata
from .wan_keys import strip_wrappers, to_wan

# What core ComfyUI assumes of every Wan model; only differences are written. It passes the rest of the metadata's
# `config` to its model class, so nothing may be written that this class does not accept.
COMFY_ASSUMES = {"text_dim": 4096, "freq_dim": 256, "eps": 1e-6}

# Widest first, as safetensors itself orders tensors, so that every tensor starts aligned.
SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_student(
    model: WanTransformer3DModel,
    path: str | Path,
    *,
    spec: StudentSpec | None = None,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a student so that `load_student` reads it again; returns the path.

    path: a name ending in `.safetensors` is one file with Wan's names, which ComfyUI reads too (`save_wan`); any other
    name is a folder as diffusers writes it (`save_diffusers`). spec: what the student was trained for, written beside
    the weights, as is size: (height, width) in pixels that it was trained for. dtype: of the weights as written, by
    default the model's own.
    Raises `CheckpointError` if the model is not a Wan transformer or the file cannot be written.
    """
    if Path(path).suffix == ".safetensors":
        causal = spec is None or spec.frames_per_block > 0
        return save_wan(model, path, spec=spec, size=size, dtype=dtype, causal_ar=causal)
    return save_diffusers(model, path, spec=spec, size=size, dtype=dtype)


def save_wan(
    model: WanTransformer3DModel,
    path: str | Path,
    *,
    spec: StudentSpec | None = None,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    causal_ar: bool = True,
) -> Path:
    """Write `model` as one safetensors file with Wan's names, which ComfyUI's loaders and `read_checkpoint` read.

    The metadata `config` marks the model as autoregressive for core ComfyUI (`causal_ar`; left out for image-to-video
    models, which core 0.27 then fails to build) and has what shapes do not determine; `salt` holds `spec`,
    `salt_size` the size.
    `dtype` converts all weights as they are written. Replaces a file at `path` atomically.

    Raises `CheckpointError` if the model is not a Wan transformer or the file cannot be written.
    """
    path = Path(path)
    weights = _weights(model)
    names = {name: to_wan(name) for name in weights}
    unknown = [name for name, wan in names.items() if wan is None]
    if unknown:
        raise CheckpointError(
            f"{path}: not written, since the model has weights that a Wan transformer does not have: {shorten(unknown)}"
        )
    metadata = {**comfy_metadata(model.config, causal_ar), **_spec_metadata(spec), **size_metadata(size)}
    write_safetensors(path, {names[name] or name: tensor for name, tensor in weights.items()}, dtype, metadata)
    return path


def comfy_metadata(config: Mapping[str, Any], causal_ar: bool) -> dict[str, str]:
    """Metadata from which core ComfyUI (0.27) reads what a model's shapes do not determine."""
    transformer: dict[str, Any] = {
        key: config[key] for key, assumed in COMFY_ASSUMES.items() if config.get(key, assumed) != assumed
    }
    if config["attention_head_dim"] != 128:
        transformer["num_heads"] = config["num_attention_heads"]
    channels = config["out_channels"]
    if causal_ar and config["in_channels"] == channels != WAN22_CHANNELS:  # core's class for it has Wan 2.1's latents
        transformer["causal_ar"] = True
    return {"config": json.dumps({"transformer": transformer})}


def save_diffusers(
    model: WanTransformer3DModel,
    folder: str | Path,
    *,
    spec: StudentSpec | None = None,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write `model` as a diffusers folder (config.json and one safetensors file), which diffusers' own class loads.

    Each file is replaced atomically; other files in `folder` stay. `spec`, `size`, `dtype` and errors:
    as for `save_wan`.
    """
    folder = Path(folder)
    metadata = {**_spec_metadata(spec), **size_metadata(size)}
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", _weights(model), dtype, metadata)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config = {"_class_name": "WanTransformer3DModel", "_diffusers_version": __version__, **config}
    with atomic_file(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return folder


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {strip_wrappers(name): tensor for name, tensor in model.state_dict().items()}


def _spec_metadata(spec: StudentSpec | None) -> dict[str, str]:
    if spec is None:
        return {}
    return {"salt": json.dumps(spec.to_dict())}


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error.

    Raises `CheckpointError` if it cannot be written (no permission, disk full); what was at `path` stays.
    """
    try:
        with atomic_write(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """Write `tensors` (as `dtype`, None: each as it is) and `metadata` as a safetensors file, atomically.

    Tensors are converted and written one by one. `safetensors.torch.save_file` needs all converted tensors at once: up
    to a second copy of the model. Raises `CheckpointError` if the file cannot be written.
    """
    rank = {each: index for index, each in enumerate(SAFETENSORS_TYPES)}
    order = sorted(tensors, key=lambda name: (rank[dtype or tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in order:
        file_dtype = dtype or tensors[name].dtype
        start, end = end, end + tensors[name].numel() * file_dtype.itemsize
        header[name] = {
            "dtype": SAFETENSORS_TYPES[file_dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = tensors[name].detach().to(device="cpu", dtype=dtype).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
