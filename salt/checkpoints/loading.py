"""Build a student model from a weight file, and summarise what a weight file holds."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import no_init_weights

from ..models.transformer_salt import SaltTransformer3DModel
from .families import family_of
from .lora import is_lora, read_lora
from .lora_merge import LoraSource, lora_files, merge_loras
from .other_files import describe_other
from .reader import Weights, read_checkpoint
from .tensor_files import find_files, open_tensors, shorten
from .wan22 import EITHER, is_wan22

log = logging.getLogger(__name__)


def load_student(
    path: str | Path,
    *,
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    lora: LoraSource | None = None,
) -> SaltTransformer3DModel:
    """The student in any file that `read_checkpoint` reads, in eval mode.

    `dtype=None` keeps the dtype of the file, and on the CPU its weights stay memory-mapped. With a half-precision
    `dtype` the weights that diffusers keeps in float32 (norms, modulations, the time embedder) are float32 here too.
    `lora`, one file or several (`LoraFile` for a strength), is merged before weights are converted. Memory peaks near
    one copy of the model.

    Raises `CheckpointError` for a file that is damaged or not a Wan 2.1 transformer.
    """
    checkpoint, loras = read_checkpoint(path, weights), lora_files(lora)
    if checkpoint.ignored:
        log.info("%s: not read: %s", path, shorten(_by_first_part(checkpoint.ignored)))
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = SaltTransformer3DModel(**checkpoint.config)
    load_dtype = None if loras else dtype
    # A single weight that stays mapped would keep the whole file in memory beside the converted copy.
    converts = load_dtype is not None and load_dtype != checkpoint.dtype
    for name, tensor in checkpoint.tensors():
        _assign(model, name, _placed(name, tensor, load_dtype, device, converts))
    if loras:
        merge_loras(model, loras)
        for name, parameter in list(model.named_parameters()):
            _assign(model, name, _placed(name, parameter.data, dtype, device))
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval()


def describe(path: str | Path) -> dict[str, Any]:
    """A summary of a weight file or folder, for display. Reads only names and shapes.

    Keys: path, format, variant, weights (chosen by "auto"), available, heads, head_dim, dim, layers, ffn, text_dim,
    in_channels, parameters, dtype, bytes (on disk, of all files), ignored (names of what is no weight of the model),
    student (where it may be one of several), size (it was trained for, WIDTHxHEIGHT or None), spec (dict or None); of
    a released family also model and licence. Of a LoRA: path, format, layers (adapted ones), rank, alpha, scale, whole
    differences, bytes. Of a text encoder or an autoencoder: path, format, bytes.
    Raises `CheckpointError` as `read_checkpoint` does.
    """
    path = Path(path)
    family = family_of(path)
    named = {} if family is None else {"model": f"{family.about} ({family.repo})", "licence": family.licence}
    if path.exists() and (other := describe_other(path)) is not None:
        return named | other
    files, _ = find_files(path)
    size = sum(file.stat().st_size for file in files)
    if is_lora(open_tensors(files[0])[0]):
        lora = read_lora(files[0])
        return named | {"path": str(path), "format": f"LoRA, {lora.names} names", **lora.summary(), "bytes": size}
    found = read_checkpoint(path)
    config = found.config
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    return named | {
        "path": str(path),
        "format": found.format,
        "variant": found.variant,
        "weights": found.weights,
        "available": list(found.available),
        "dim": heads * width,
        "heads": heads,
        "head_dim": width,
        "layers": config["num_layers"],
        "ffn": config["ffn_dim"],
        "text_dim": config["text_dim"],
        "in_channels": config["in_channels"],
        "parameters": found.parameters,
        "dtype": str(found.dtype).removeprefix("torch."),
        "bytes": size,
        "ignored": shorten(_by_first_part(found.ignored)) or None,
        "student": EITHER if found.spec is None and is_wan22(config) else None,
        "size": found.size and f"{found.size[1]}x{found.size[0]}",
        "spec": found.spec and found.spec.to_dict(),
    }


def _by_first_part(names: Iterable[str]) -> list[str]:
    """Names of what a file holds beside the weights, those of one model together: `critic (825 tensors)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return [of[0] if len(of) == 1 else f"{first} ({len(of)} tensors)" for first, of in groups.items()]


def _placed(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | None, device: str | torch.device, copy: bool = False
) -> torch.Tensor:
    """`tensor` on the model's device and in its dtype; the same tensor if nothing changes, unless `copy`."""
    precise = SaltTransformer3DModel._keep_in_fp32_modules or []
    if dtype in (torch.float16, torch.bfloat16) and any(part in precise for part in name.split(".")):
        dtype = torch.float32
    return tensor.to(device=device, dtype=dtype, copy=copy)


def _assign(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(tensor))
