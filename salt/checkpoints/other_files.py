"""Files of the students' families that are no student themselves: text encoders, autoencoders, packed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .longlive2 import NVFP4
from .tensor_files import open_tensors, read_json

ANYFLOW_CLASSES = {
    "AnyFlowFARTransformer3DModel": "AnyFlow-FAR transformer",
    "FAR_Wan_Transformer3DModel": "AnyFlow-FAR transformer",
    "AnyFlowTransformer3DModel": "AnyFlow transformer",
}


def describe_other(path: Path) -> dict[str, Any] | None:
    """A summary of such a file or folder, for display; None for any other. Reads only names and shapes.

    Raises `CheckpointError` for a file that cannot be read.
    """
    if path.is_dir():
        return _anyflow(path)
    content = open_tensors(path)[0]
    inner = next((content[key] for key in ("generator", "model", "state_dict") if _is_dict(content.get(key))), content)
    shapes = {str(name): tuple(x.shape) for name, x in inner.items() if isinstance(x, torch.Tensor)}
    kind = _kind(shapes)
    return None if kind is None else {"path": str(path), "format": kind, "bytes": path.stat().st_size}


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _kind(shapes: dict[str, tuple[int, ...]]) -> str | None:
    if any(name.endswith(NVFP4) for name in shapes):
        return "packed NVFP4 weights, which are not read; the family's merged bf16 file is (model_bf16.pt, model_te.pt)"
    if "token_embedding.weight" in shapes and "blocks.0.attn.q.weight" in shapes:
        return "UMT5 text encoder in Wan's own names (`salt pull wan-text-encoder` has the one that is read)"
    z = shapes.get("conv2.weight")
    if z is not None and "encoder.conv1.weight" in shapes and "decoder.conv1.weight" in shapes:
        version = {16: "2.1", 48: "2.2"}.get(z[0], f"({z[0]} channels)")
        return f"Wan {version}'s autoencoder in Wan's own names"
    if "decoder.1.weight" in shapes and "encoder.0.weight" in shapes and "blocks.0.norm3.weight" not in shapes:
        return "TAEHV, the tiny autoencoder (--decoder)"
    return None


def _anyflow(folder: Path) -> dict[str, Any] | None:
    """A diffusers folder of AnyFlow's, known by the class in its config.json."""
    at = folder / "transformer" if (folder / "transformer").is_dir() else folder
    config = read_json(at / "config.json") if (at / "config.json").is_file() else {}
    kind = ANYFLOW_CLASSES.get(str(config.get("_class_name")))
    if kind is None:
        return None
    size = sum(file.stat().st_size for file in at.iterdir() if file.is_file())
    return {
        "path": str(folder),
        "format": f"diffusers folder, {kind}",
        "layers": config.get("num_layers"),
        "bytes": size,
    }
