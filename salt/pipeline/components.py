"""Components of a pipeline: the record that a run reads, and loading them from the embedded or a diffusers folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.modeling_utils import no_init_weights
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..acceleration.attention_backend import AttentionChoice
from ..acceleration.cuda_graphs import CUDAGraphTransformer
from ..acceleration.kernels.choice import KernelChoice
from ..acceleration.presets import AccelerationPreset
from ..checkpoints.trained_size import INDEX, DefaultSize
from ..io.fields import Between, FieldError, read_fields, read_object, shown
from ..io.model_folders import ModelFolderError, check_config, check_model_folder
from ..memory import BufferPool
from ..models.anyflow import AnyFlowTransformer3DModel
from ..models.pixel_stream import FrameEncoder
from ..models.text_encoder import TextEncoder
from ..models.transformer_salt import SaltTransformer3DModel
from ..spec import TINY_FOLDER, TINY_NAME, StudentSpec
from .anyflow import as_anyflow, check_diffusers, is_anyflow, is_flow_map

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "image_processor", "scheduler")
LIBRARIES = ("diffusers", "transformers", "salt")  # whose classes a model_index.json may name
PROJECT_KEYS = ("words", "default_size", "student")


@dataclass(frozen=True)
class PipelineComponents:
    """What a run reads of a pipeline: models, settings and the device, as they are when the run begins.

    text_encoder: None where a pipeline can take prompt embeddings only. new_encoder: of a source video. default_size:
    pixels (H, W). graphed: the transformer with CUDA graphs, where it may be used. scales: pixels per latent pixel, and
    pixel frames per latent frame.
    """

    transformer: SaltTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: TextEncoder | None
    image_encoder: PreTrainedModel | None
    image_processor: BaseImageProcessor | None
    spec: StudentSpec
    default_size: tuple[int, int]
    spatial_scale: int
    temporal_scale: int
    acceleration: AccelerationPreset
    buffer_pool: BufferPool
    attention: AttentionChoice
    kernels: KernelChoice
    new_encoder: Callable[[], FrameEncoder]
    device: torch.device
    graphed: CUDAGraphTransformer | None = None

    @property
    def bidirectional(self) -> bool:
        return self.spec.frames_per_block == 0

    @property
    def image_to_video(self) -> bool:
        """Whether the transformer takes the channels of an image beside the noise (Wan 2.1 I2V)."""
        return self.transformer.config.in_channels > self.transformer.config.out_channels

    @property
    def flow_map(self) -> bool:
        """Whether the transformer also takes the timestep that is stepped to."""
        return isinstance(self.transformer, AnyFlowTransformer3DModel)

    @property
    def offloaded(self) -> bool:
        """Whether accelerate moves the transformer's weights between uses."""
        return hasattr(self.transformer, "_hf_hook")


@dataclass(frozen=True)
class WordTable:
    """Arguments of `WordEmbedder` in a model_index.json."""

    dim: Annotated[int, Between(1, 2**16)] = 4096
    max_length: Annotated[int, Between(1, 2**12)] = 16
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True)
class IndexFields(DefaultSize):
    """The keys of this project in a model_index.json."""

    words: WordTable | None = None
    student: StudentSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student is not None:
            self.student.schedule  # noqa: B018 (checks steps and shift)


@dataclass
class LoadedComponents:
    """The components of a folder beside the transformer. `text_folder` is the folder of a UMT5, where there is one."""

    vae: AutoencoderKLWan
    words: dict | None
    text_folder: Path | None
    default_size: list[int] | None
    image_encoder: PreTrainedModel | None = None
    image_processor: BaseImageProcessor | None = None


def tiny_folder() -> Path:
    """The folder of salt-tiny. Raises FileNotFoundError where the weights were not installed with the package."""
    if not (TINY_FOLDER / INDEX).is_file():
        raise FileNotFoundError(
            f"{TINY_FOLDER / INDEX}: found no such file, expected the embedded weights of {TINY_NAME}"
        )
    return TINY_FOLDER


def load_components(
    folder: str | Path, dtype: torch.dtype | None = None, vae_dtype: torch.dtype | None = None
) -> LoadedComponents:
    """VAE, text and image components of a diffusers folder (`vae/`, `text_encoder/`, ...).

    dtype: of the image encoder. vae_dtype: of the VAE, float32 by default. UMT5 is not loaded yet.
    Raises FileNotFoundError when the folder has no `vae/`, or neither a text encoder nor a word table.
    """
    folder = Path(folder)
    if not (folder / "vae" / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: found no vae/config.json, expected Wan's components (vae/, text_encoder/, ...)"
        )
    check_model_folder(folder)
    check_configs(folder)
    index = read_index(folder)
    words, text_folder = index.get("words"), folder if (folder / "text_encoder").is_dir() else None
    if words is None and text_folder is None:
        raise FileNotFoundError(f"{folder}: found no text_encoder/, expected Wan's text encoder in it")
    vae = AutoencoderKLWan.from_pretrained(
        folder / "vae", torch_dtype=vae_dtype or torch.float32, use_safetensors=True
    ).eval()
    check_loaded(vae, f"{folder / 'vae'}")
    loaded = LoadedComponents(vae, words, text_folder, index.get("default_size"))
    if (folder / "image_encoder").is_dir():
        from transformers import CLIPImageProcessor, CLIPVisionModel

        loaded.image_encoder = CLIPVisionModel.from_pretrained(
            folder / "image_encoder", dtype=dtype or torch.float32, trust_remote_code=False, use_safetensors=True
        )
        loaded.image_processor = CLIPImageProcessor.from_pretrained(folder / "image_processor", trust_remote_code=False)
    return loaded


def check_configs(folder: Path) -> None:
    """Raise ModelFolderError, naming the field, where config.json of vae/ or transformer/ is none of Wan's models."""
    anyflow = is_anyflow(read_index(folder))
    if anyflow:
        check_diffusers(folder)
    transformer = AnyFlowTransformer3DModel if anyflow else WanTransformer3DModel
    for part, model in (("vae", AutoencoderKLWan), ("transformer", transformer)):
        parameters = inspect.signature(model.__init__).parameters
        defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
        if "chunk_partition" in defaults:
            defaults["chunk_partition"] = [1]  # any number of blocks
        check_config(folder / part / "config.json", defaults)


def read_index(folder: Path) -> dict[str, Any]:
    """The model_index.json of a folder, {} without one. Raises ValueError, naming the file, for a wrong value."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        index = read_object(path)
        # Only the keys of this project are read here, and checked; diffusers reads the others.
        read_fields(IndexFields, index)
        for key, value in index.items():
            if key in COMPONENTS or isinstance(value, list):
                _check_entry(key, value)
        return index
    except FieldError as error:
        raise ValueError(f"{path}: {error}") from error


def check_loaded(model: nn.Module | None, where: str) -> None:
    """Raise ModelFolderError for weights that a model's files do not have, which diffusers leaves without values."""
    missing = [name for name, x in model.named_parameters() if x.is_meta] if model is not None else []
    if missing:
        raise ModelFolderError(
            f"{where}: found no {missing[0]} ({len(missing)} weights are missing), expected diffusers' names and all "
            f"of the model's weights"
        )


def _check_entry(key: str, value: object) -> None:
    """Raise FieldError unless an entry names a class of a library whose models are loaded, or no class."""
    if key in PROJECT_KEYS:
        return
    pair = value if isinstance(value, list) and len(value) == 2 else [0, 0]
    library, name = pair
    if pair != [None, None] and not (isinstance(name, str) and str(library).partition(".")[0] in LIBRARIES):
        raise FieldError(f"{key}: found {shown(value)}, expected a library of {', '.join(LIBRARIES)} and a class")


def as_salt_transformer(transformer: WanTransformer3DModel) -> SaltTransformer3DModel:
    """Wan's or AnyFlow-FAR's transformer as a student; parameters are shared. A student is returned as it is."""
    if isinstance(transformer, SaltTransformer3DModel):
        return transformer
    if is_flow_map(transformer):
        return as_anyflow(transformer)
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    with no_init_weights(), init_empty_weights(include_buffers=False):
        student = SaltTransformer3DModel(**config)
    student.load_state_dict(transformer.state_dict(), assign=True)
    return student.train(transformer.training)
