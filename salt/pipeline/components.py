"""The pipeline's parts from disk: the embedded tiny system, and the folder of parts beside a checkpoint file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.modeling_utils import no_init_weights

from ..models.transformer_salt import SaltTransformer3DModel

TINY = Path(__file__).parents[1] / "assets" / "tiny"
TINY_NAME = "salt-tiny"
INDEX = "model_index.json"


@dataclass
class Components:
    """What a pipeline needs beside the transformer. `text` is the folder of a UMT5, where there is one."""

    vae: AutoencoderKLWan
    words: dict[str, Any] | None
    text: Path | None
    default_size: list[int] | None
    image_encoder: Any = None
    image_processor: Any = None


def tiny_folder() -> Path:
    """The embedded default. Raises FileNotFoundError where the weights were not installed with the package."""
    if not (TINY / INDEX).is_file():
        raise FileNotFoundError(f"{TINY / INDEX}: found no such file, expected the embedded weights of {TINY_NAME}")
    return TINY


def load_components(folder: str | Path, dtype: torch.dtype | None = None) -> Components:
    """VAE, text and image parts of a folder laid out as diffusers does it (`vae/`, `text_encoder/`, `tokenizer/`, ...).

    dtype: of the image encoder; the VAE stays in float32, in which Wan's is exact. UMT5 is not loaded yet.
    Raises FileNotFoundError when the folder has no `vae/`, or neither a text encoder nor a word table.
    """
    folder = Path(folder)
    if not (folder / "vae" / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: found no vae/config.json, expected Wan's parts (vae/, text_encoder/, ...)")
    index = _read_index(folder)
    words, text = index.get("words"), folder if (folder / "text_encoder").is_dir() else None
    if words is None and text is None:
        raise FileNotFoundError(f"{folder}: found no text_encoder/, expected Wan's text encoder in it")
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    parts = Components(vae, words, text, index.get("default_size"))
    if (folder / "image_encoder").is_dir():
        from transformers import CLIPImageProcessor, CLIPVisionModel

        parts.image_encoder = CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=dtype or torch.float32)
        parts.image_processor = CLIPImageProcessor.from_pretrained(folder / "image_processor")
    return parts


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is damaged ({error})") from error


def promote(transformer: WanTransformer3DModel) -> SaltTransformer3DModel:
    """Wan's transformer as a student; parameters are shared, not copied. A student stays as it is."""
    if isinstance(transformer, SaltTransformer3DModel):
        return transformer
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    with no_init_weights(), init_empty_weights(include_buffers=False):
        student = SaltTransformer3DModel(**config)
    student.load_state_dict(transformer.state_dict(), assign=True)
    return student.train(transformer.training)
