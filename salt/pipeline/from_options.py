"""A pipeline from a user's options: the folder or checkpoint, where its components lie, device, precision, decoder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import compare_versions
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..acceleration.attention_backend import AttentionSetting
from ..acceleration.free_memory import total_bytes
from ..acceleration.kernels.choice import KernelSetting
from ..acceleration.presets import Preference, preset_of
from ..checkpoints.families import STUDENTS
from ..checkpoints.lora import read_lora
from ..checkpoints.lora_merge import LoraSource, lora_files, merge_loras
from ..errors import InputError
from ..io.fields import shown
from ..io.hub import models_folder
from ..io.hub_parts import WAN
from ..models.text_encoder import (
    CachedTextEncoder,
    TextEncoder,
    TextPrecision,
    UMT5TextEncoder,
    umt5_key,
    umt5_width,
)
from ..models.word_embedder import WordEmbedder
from ..planning.report import plan_line
from ..spec import TINY_FOLDER, StudentSpec
from .checkpoint import check_checkpoint
from .components import INDEX, TINY_NAME, read_index, tiny_folder
from .named_loras import NamedLora, load_named
from .pipeline import SaltPipeline

log = logging.getLogger(__name__)
PULLED = WAN.rpartition("/")[2]  # folder of Wan's components under `models_folder`


@dataclass(frozen=True)
class PipelineOptions:
    """What `load_pipeline` loads.

    model: a pipeline folder, a checkpoint, or `salt-tiny`. parts: folder with the checkpoint's vae/, text_encoder/ and
    tokenizer/, or `salt-tiny` for its own (default: the folder that `salt pull` fills). decoder: `wan`, or the path of
    taew2_1; encoder: likewise, of a source video. tiles: decode with Wan's VAE in tiles. dtype, vae_dtype: of the
    transformer and of Wan's VAE (default of both: bfloat16 on CUDA, else float32).
    lora: merged into the weights; named_loras: kept apart, their strengths may be changed.
    student: name of a checkpoint's settings (`salt.checkpoints.families.STUDENTS`), where its file does not tell.
    text_cache: folder for prompt embeddings. prefer, attention, kernels: see `SaltPipeline.set_acceleration`,
    `set_attention`, `set_kernels`.
    """

    model: str = TINY_NAME
    parts: Path | None = None
    weights: Literal["auto", "ema", "regular"] = "auto"
    student: str | None = None
    lora: LoraSource | None = None
    named_loras: tuple[NamedLora, ...] = ()
    decoder: str = "wan"
    encoder: str = "wan"
    tiles: bool = False
    device: str | None = None
    dtype: str | None = None
    vae_dtype: str | None = None
    text_precision: TextPrecision = "bf16"
    text_cache: Path | None = None
    prefer: Preference = "exact"
    attention: AttentionSetting = "auto"
    kernels: KernelSetting = "auto"

    @property
    def is_folder(self) -> bool:
        """Whether `model` is a whole pipeline rather than a checkpoint."""
        return self.model == TINY_NAME or (Path(self.model) / INDEX).is_file()


def load_pipeline(options: PipelineOptions, device: torch.device) -> SaltPipeline:
    """The pipeline of a folder, or of a checkpoint with its components, on `device` and without a progress bar.

    Raises FileNotFoundError and InputError that name the file, folder or option that is missing or does not fit;
    `CheckpointError` for a file that is no checkpoint.
    """
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    if options.tiles and options.decoder != "wan":
        raise InputError("tiles", "is not supported by the tiny decoder, which needs none")
    student, parts = _student_spec(options), parts_folder(options)
    dtype, vae_dtype = (chosen_dtype(name, device) for name in (options.dtype, options.vae_dtype))
    for file in lora_files(options.lora):
        read_lora(file.path)  # fails before gigabytes of weights are read
    for named in options.named_loras:
        read_lora(named.path)
    if options.is_folder and options.parts is None:
        pipe = _load_folder(options, parts, device, dtype, vae_dtype)
    else:
        check_checkpoint(options.model, options.weights)  # as early as a LoRA
        pipe = SaltPipeline.from_single_file(
            options.model,
            parts=parts,
            weights=options.weights,
            lora=options.lora,
            student=student,
            prompt_encoder=load_text_encoder(options, parts, device),
            torch_dtype=dtype,
            vae_dtype=vae_dtype,
        )
    load_named(pipe, options.named_loras)
    pipe.set_progress_bar_config(disable=True)
    if options.tiles:
        pipe.enable_vae_tiling()
    pipe.set_decoder(options.decoder)
    pipe.set_encoder(options.encoder)
    if preset_of(options.prefer).weights != "bf16":  # the device may not hold them as they are loaded
        pipe.check_weights(options.model)
        pipe.set_acceleration(options.prefer, device)
    pipe.to(device).check_weights(options.model)
    pipe.set_acceleration(options.prefer, device)
    pipe.set_attention(options.attention)
    pipe.set_kernels(options.kernels)
    if device.type == "cuda":
        log.info(plan_line(pipe.plan(), total_bytes(device)))
    return pipe


def _student_spec(options: PipelineOptions) -> StudentSpec | None:
    if options.student is None:
        return None
    if options.student not in STUDENTS:
        raise InputError("student", f"found {shown(options.student)}, expected one of {', '.join(STUDENTS)}")
    if options.is_folder and options.parts is None:
        raise InputError("student", f"has no effect with {options.model}, whose settings are its own")
    return STUDENTS[options.student]


def chosen_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of this name, or what models have on a device by default."""
    return getattr(torch, name or ("bfloat16" if device.type == "cuda" else "float32"))


def parts_folder(options: PipelineOptions) -> Path:
    """The folder of the other components, checked to be there: the model's own, or one beside a checkpoint."""
    path = Path(options.model)
    if not options.is_folder and not path.exists():
        raise FileNotFoundError(f"{path}: found no such file or folder, expected a model")
    if options.parts is not None:
        if options.model == TINY_NAME and not path.exists():
            raise InputError("parts", f"cannot be combined with {TINY_NAME}, which has its own; name a checkpoint too")
        if str(options.parts) == TINY_NAME and not options.parts.exists():
            return TINY_FOLDER
        if not options.parts.is_dir():
            raise InputError("parts", f"found no such folder {options.parts}, expected vae/ and text_encoder/ in it")
        return options.parts
    if options.is_folder:
        return path
    pulled = models_folder() / PULLED
    if not pulled.exists():
        raise InputError(
            "parts",
            f"is needed with a checkpoint alone ({path}): a folder with vae/ and text_encoder/ "
            f"(or `salt pull` them, to {pulled})",
        )
    return pulled


def _load_folder(
    options: PipelineOptions, folder: Path, device: torch.device, dtype: torch.dtype, vae_dtype: torch.dtype
) -> SaltPipeline:
    keywords: dict[str, Any] = {}
    if {dtype, vae_dtype} != {torch.float32}:  # which diffusers reads anyway
        name = "dtype" if compare_versions("diffusers", ">=", "0.40.0") else "torch_dtype"
        keywords[name] = {"vae": vae_dtype, "default": dtype}
    encoder = load_text_encoder(options, folder, device)
    if encoder is not None:
        keywords |= {"text_encoder": None, "tokenizer": None}
    pipe = SaltPipeline.from_pretrained(options.model, **keywords)
    if encoder is not None:
        pipe.set_prompt_encoder(encoder)
    if options.lora is not None:
        merge_loras(pipe.transformer, options.lora)
    return pipe


def load_text_encoder(options: PipelineOptions, folder: Path, device: torch.device) -> TextEncoder | None:
    """The UMT5 of a folder, None where it has none. It stays on the CPU; blocks go to the device for each prompt."""
    if not (folder / "text_encoder").is_dir():
        for name, given in (("text_cache", options.text_cache), ("text_precision", options.text_precision != "bf16")):
            if given:
                raise InputError(name, f"has no effect with {folder}, which has no text_encoder/")
        return None

    def load() -> UMT5TextEncoder:
        return UMT5TextEncoder.from_pretrained(folder, options.text_precision, device)

    if options.text_cache is None:
        return load()
    key = umt5_key(folder)
    return CachedTextEncoder(load, options.text_cache, f"{key}-{options.text_precision}", key, umt5_width(folder))


def word_table(options: PipelineOptions) -> WordEmbedder | None:
    """The words that the model's text encoder knows, where it knows but some; its vectors are of width 1."""
    folder = tiny_folder() if options.model == TINY_NAME and not Path(TINY_NAME).exists() else parts_folder(options)
    words = None if (folder / "text_encoder").is_dir() else read_index(folder).get("words")
    return WordEmbedder(**{**words, "dim": 1}) if words else None
