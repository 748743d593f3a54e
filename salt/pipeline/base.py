"""Base of `SaltPipeline`: its components, loading and saving, decoder, acceleration and devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from diffusers.video_processor import VideoProcessor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..acceleration.attention_backend import AttentionChoice, AttentionSetting, check_backend, set_attention
from ..acceleration.cuda_graphs import CUDAGraphTransformer
from ..acceleration.finite_check import check_weights
from ..acceleration.kernels.choice import KernelChoice, KernelSetting, set_kernels
from ..acceleration.presets import PREFERENCES, Preference, preset_of
from ..errors import InputError
from ..io.model_folders import ModelFolderError, check_model_folder
from ..memory import BufferPool, MemoryPolicy
from ..models.pixel_stream import FrameEncoder
from ..models.streaming_vae import FrameDecoder, Tiling
from ..models.text_encoder import TextEncoder, UMT5TextEncoder
from ..models.tokenizer import load_tokenizer
from ..models.transformer_salt import SaltTransformer3DModel
from ..models.word_embedder import WordEmbedder
from ..planning.peaks import MemoryPlan
from ..planning.settings import Decoder
from ..schedule import step_list
from ..spec import StudentSpec
from .anyflow import ANYFLOW, anyflow_spec, is_flow_map, scheduler_shift
from .checkpoint import file_size, load_transformer
from .components import (
    TINY_NAME,
    PipelineComponents,
    as_salt_transformer,
    check_configs,
    check_loaded,
    load_components,
    read_index,
    tiny_folder,
)
from .frame_coders import FrameCoders
from .inputs import PipelineInputs
from .lora import AdapterState, SaltLoraMixin, adapter_state
from .memory_plan import plan_of
from .preset_changes import change_transformer, check_change

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..checkpoints.lora_merge import LoraSource

# Wan 2.1's own sizes and steps, for folders that have no student's settings.
WAN_SIZE = (480, 832)
WAN22_SIZE = (704, 1280)  # of the models with Wan 2.2's VAE
WAN_SPEC = StudentSpec(frames_per_block=0, steps=step_list(50))


class SaltPipelineBase(SaltLoraMixin, DiffusionPipeline):
    """Components and settings of `SaltPipeline`, which documents the constructor's arguments."""

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "image_encoder", "image_processor"]

    def __init__(
        self,
        transformer: WanTransformer3DModel | None,
        vae: AutoencoderKLWan | None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_encoder: PreTrainedModel | None = None,
        image_processor: BaseImageProcessor | None = None,
        student: dict | StudentSpec | None = None,
        words: dict | None = None,
        default_size: list | tuple | None = None,
    ) -> None:
        super().__init__()
        if student is None:
            student = StudentSpec() if isinstance(transformer, SaltTransformer3DModel) else WAN_SPEC
            student = anyflow_spec(transformer) if is_flow_map(transformer) else student
        self.spec = student if isinstance(student, StudentSpec) else StudentSpec.from_dict(student)
        # None only in a pipeline that does nothing but encode prompts.
        self.transformer: SaltTransformer3DModel
        self.vae: AutoencoderKLWan
        self.text_encoder: PreTrainedModel | None
        self.tokenizer: PreTrainedTokenizerBase | None
        self.image_encoder: PreTrainedModel | None
        self.image_processor: BaseImageProcessor | None
        self.register_modules(
            transformer=None if transformer is None else as_salt_transformer(transformer),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_processor=image_processor,
        )
        self.spatial_scale = 8 if vae is None else int(vae.config["scale_factor_spatial"])
        size = tuple(default_size or (WAN22_SIZE if self.spatial_scale == 16 else WAN_SIZE))
        self.register_to_config(student=self.spec.to_dict(), words=words, default_size=list(size))
        self.default_size: tuple[int, int] = (int(size[0]), int(size[1]))
        self.temporal_scale = 4 if vae is None else int(vae.config["scale_factor_temporal"])
        self.video_processor = VideoProcessor(vae_scale_factor=self.spatial_scale)
        self.acceleration = PREFERENCES["exact"]
        self.buffer_pool = BufferPool()
        self._prompt_encoder: TextEncoder | None = WordEmbedder(**words) if words else None
        self._attention: AttentionSetting = "auto"
        self._kernels: KernelSetting = "auto"
        self._graphed: CUDAGraphTransformer | None = None
        self._graphed_adapters: AdapterState = ()
        self._coders = FrameCoders()
        self._checked_weights: list[tuple[int, int]] = []

    @classmethod
    def tiny(cls) -> Self:
        """The embedded default, salt-tiny. Raises FileNotFoundError where its weights are not installed."""
        return cls.from_pretrained(tiny_folder())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: object) -> Self:
        """As `DiffusionPipeline.from_pretrained`; also reads Wan 2.1's diffusers folders, and the name `salt-tiny`."""
        name = pretrained_model_name_or_path
        folder = tiny_folder() if str(name) == TINY_NAME and not Path(name).exists() else name
        if kwargs.pop("trust_remote_code", False):
            raise InputError("trust_remote_code", "is not supported: Python code of a model is never run")
        if Path(folder).is_dir():
            check_model_folder(Path(folder))
            check_configs(Path(folder))
            read_index(Path(folder))
            if (Path(folder) / "tokenizer").is_dir() and "tokenizer" not in kwargs:
                load_tokenizer(Path(folder) / "tokenizer")  # whose errors diffusers' own loading does not word
        options = {"use_safetensors": True, **kwargs, "trust_remote_code": False}
        try:
            pipe = super().from_pretrained(folder, **options)
        except (ValueError, RuntimeError, OSError) as error:
            if str(folder) in str(error):
                raise
            raise ModelFolderError(f"{folder}: cannot be loaded: {error}") from error
        if "device_map" not in kwargs:
            for name in ("transformer", "vae"):
                check_loaded(getattr(pipe, name), f"{folder}/{name}")
        if is_flow_map(pipe.transformer) and "student" not in read_index(Path(folder)):
            pipe.spec = replace(pipe.spec, shift=scheduler_shift(Path(folder)))
        return pipe

    @classmethod
    def from_single_file(
        cls,
        checkpoint: str | Path,
        *,
        parts: str | Path,
        weights: Literal["auto", "ema", "regular", "critic"] = "auto",
        lora: LoraSource | None = None,
        student: StudentSpec | None = None,
        prompt_encoder: TextEncoder | None = None,
        torch_dtype: torch.dtype | None = None,
        vae_dtype: torch.dtype | None = None,
    ) -> Self:
        """A student in any file that `salt.checkpoints` reads, with the other components from a diffusers folder.

        parts: that folder, with `vae/` and `text_encoder/`. student: the settings, where the file has none
        (`StudentSpec()`, blocks of 3 in 4 steps, is assumed then). prompt_encoder: used instead of the folder's. lora:
        files to be merged, each a path or a `LoraFile` with its strength. vae_dtype: of the VAE, float32 by default.
        Errors: `CheckpointError`, FileNotFoundError.
        """
        others = load_components(parts, torch_dtype, vae_dtype)
        transformer, spec = load_transformer(checkpoint, weights, torch_dtype, lora, student)
        umt5 = None
        if prompt_encoder is None and others.text_folder is not None:
            umt5 = UMT5TextEncoder.from_pretrained(others.text_folder)
        pipe = cls(
            transformer,
            others.vae,
            text_encoder=umt5.model if umt5 else None,
            tokenizer=umt5.tokenizer if umt5 else None,
            image_encoder=others.image_encoder,
            image_processor=others.image_processor,
            student=spec,
            words=others.words,
            default_size=file_size(checkpoint, weights) or others.default_size,
        )
        if prompt_encoder is not None:
            pipe.set_prompt_encoder(prompt_encoder)
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As `DiffusionPipeline.save_pretrained`; the transformer is named as diffusers' class, which reads it too."""
        self.register_to_config(
            transformer=("diffusers", ANYFLOW if self.spec.policy.kind == "far" else "WanTransformer3DModel"),
            student=self.spec.to_dict(),
            default_size=list(self.default_size),
        )
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def prompt_encoder(self) -> TextEncoder:
        """What encodes prompts. Raises InputError in a pipeline that has neither UMT5 nor a word table."""
        encoder = self._find_prompt_encoder()
        if encoder is None:
            raise InputError("text_encoder", "is missing: expected text_encoder and tokenizer, or words")
        return encoder

    def set_prompt_encoder(self, encoder: TextEncoder) -> None:
        """Encode prompts with `encoder` from now on, a `CachedTextEncoder` for example."""
        self._prompt_encoder = encoder

    def _find_prompt_encoder(self) -> TextEncoder | None:
        if self._prompt_encoder is not None:
            return self._prompt_encoder
        if self.text_encoder is None or self.tokenizer is None:
            return None
        return UMT5TextEncoder(self.text_encoder, self.tokenizer, device=self.run_device)

    @property
    def run_device(self) -> torch.device:
        """Where the transformer computes, also while accelerate keeps its weights elsewhere."""
        if self.transformer is None or hasattr(self.transformer, "_hf_hook"):
            return self._execution_device
        return self.transformer.device

    def set_acceleration(self, preference: Preference, device: torch.device | None = None) -> None:
        """Trade exactness, memory and speed: `exact` (the default), `fast`, `fastest`, `low memory`, `lowest memory` or
        `layer by layer`.

        Call it once the pipeline is on its device; compiling happens in the first clip. `lowest memory` and `layer by
        layer` may be set before, with the `device` to compute on, which then need not hold the weights as loaded.
        Compiled, quantised or offloaded blocks stay so: make a new pipeline for another preset. Raises InputError for
        another name, or a device or installation that cannot.
        """
        preset, device = preset_of(preference), device or self.run_device
        check_change(preference, preset, self.acceleration, self.transformer)
        change_transformer(preset, self.acceleration, self.transformer, device)
        if preset.offload_text_encoder and self.text_encoder is not None and self.tokenizer is not None:
            # It stays on the CPU, and its blocks are moved to the device for every prompt.
            self._prompt_encoder = UMT5TextEncoder(self.text_encoder.cpu(), self.tokenizer, device=device)
        self.acceleration = preset
        self._discard_graphs()

    def set_attention(self, backend: AttentionSetting = "auto") -> None:
        """Which kernel computes attention: fa3, cudnn, sage (8-bit products: not exact), fa2, sdpa, or by itself.

        Call it once the pipeline is on its device. `auto` (the default) takes the fastest that is installed and works
        there, Sage only with the preset `fastest`. Raises InputError for another name, or one that cannot be used.
        """
        if backend != "auto":
            check_backend(backend, self.run_device, self.transformer.dtype, self.transformer.config.attention_head_dim)
        self._attention = backend
        self._discard_graphs()

    @property
    def attention(self) -> AttentionChoice:
        """The attention kernel of the next run, and why it is this one; the transformer is set to it."""
        dtype, head_dim = self.transformer.dtype, self.transformer.config.attention_head_dim
        return set_attention(self.transformer, self._attention, self.run_device, dtype, head_dim, self.acceleration.fp8)

    def set_kernels(self, setting: KernelSetting = "auto") -> None:
        """Whether fused Triton kernels may compute norms, residuals and the KV cache's reads and writes.

        `auto` (the default): with every preset but `exact`, those that pass a trial on the device. Raises InputError
        for another name than `auto` and `off`.
        """
        if setting not in ("auto", "off"):
            raise InputError("kernels", f"found {setting!r}, expected auto or off")
        self._kernels = setting
        self._discard_graphs()

    @property
    def kernels(self) -> KernelChoice:
        """The fused kernels of the next run, and why it is these; the transformer is set to them."""
        return set_kernels(self.transformer, self.acceleration.kernels and self._kernels == "auto", self.run_device)

    def to(self, *args: object, **kwargs: object) -> Self:
        """As `DiffusionPipeline.to`. CUDA graphs are discarded: they read the weights where they lay before."""
        super().to(*args, **kwargs)
        self._discard_graphs()
        return self

    def _discard_graphs(self) -> None:
        records = self.acceleration.compiled and self.run_device.type == "cuda"
        self._graphed = CUDAGraphTransformer(self.transformer) if records else None
        self._graphed_adapters = adapter_state(self.transformer) if records else ()

    def set_decoder(self, decoder: str | Path | Callable[[], FrameDecoder] = "wan") -> None:
        """What turns latents into frames.

        `wan`: the pipeline's VAE (the default). A path: the tiny decoder `taew2_1` (TAEHV), some hundred times cheaper,
        a little softer. A function: it is called for every clip, and returns a decoder.
        """
        self._coders.set_decoder(decoder)

    def set_encoder(self, encoder: str | Path = "wan") -> None:
        """What turns a source video (`video=`, a camera) into latents.

        `wan`: the pipeline's VAE (the default). A path: TAEHV's encoder, in the file of the tiny decoder `taew2_1`:
        cheaper, less faithful. A start image is always encoded by the VAE. Raises InputError for another latent space.
        """
        self._coders.set_encoder(encoder, self.vae)

    def enable_vae_tiling(self, tiling: Tiling = Tiling()) -> None:  # noqa: B008 - frozen
        """Decode with Wan's VAE in tiles, for frames that are too large for the device."""
        self._coders.tiling = tiling

    def disable_vae_tiling(self) -> None:
        """Decode whole frames again (in tiles still with the presets that save memory)."""
        self._coders.tiling = None

    def check_weights(self, name: str = "transformer") -> None:
        """Raise NotFiniteError where weights of the transformer are NaN or infinite; looks once at the same weights.

        name: what the error calls the model.
        """
        if hasattr(self.transformer, "_hf_hook") or self.acceleration.weights == "layers":
            return  # accelerate would have to fetch them; blocks in main memory were looked at before they went there
        state = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.transformer.parameters()]
        if state != self._checked_weights:
            check_weights(self.transformer, name)
            self._checked_weights = state

    def new_decoder(self) -> FrameDecoder:
        """A decoder at the beginning of a clip."""
        return self._coders.decoder(self.vae, self.run_device, self.acceleration.tiles)

    def new_encoder(self) -> FrameEncoder:
        """An encoder at the beginning of a source video."""
        return self._coders.encoder(self.vae, self.run_device)

    @property
    def encoder_kind(self) -> Literal["wan", "taehv"]:
        """What encodes a source video."""
        return "wan" if self._coders.tiny_encoder is None else "taehv"

    @property
    def decoder_kind(self) -> Decoder:
        """What decodes, as a memory plan calls it."""
        return self._coders.decoder_kind(self.acceleration.tiles)

    def plan(
        self,
        height: int | None = None,
        width: int | None = None,
        seconds: float | None = None,
        memory_policy: MemoryPolicy | str | None = None,
        guidance_scale: float = 1.0,
        num_videos_per_prompt: int = 1,
    ) -> MemoryPlan:
        """What a call with these arguments needs of the device, phase by phase; nothing is allocated.

        With this pipeline's model, preset, decoder and text encoder as they are. Raises InputError for arguments out of
        range.
        """
        inputs = PipelineInputs(
            prompt="",
            height=height,
            width=width,
            seconds=seconds,
            memory_policy=memory_policy,
            guidance_scale=guidance_scale,
            num_videos_per_prompt=num_videos_per_prompt,
        )
        return plan_of(self.components_in_use(), inputs, self.decoder_kind)

    def components_in_use(self) -> PipelineComponents:
        """The models, settings and device as they are now."""
        attention, kernels = self.attention, self.kernels
        if self._graphed is not None and adapter_state(self.transformer) != self._graphed_adapters:
            self._discard_graphs()
        offloaded = hasattr(self.transformer, "_hf_hook")
        return PipelineComponents(
            transformer=self.transformer,
            vae=self.vae,
            text_encoder=self._find_prompt_encoder(),
            image_encoder=self.image_encoder,
            image_processor=self.image_processor,
            spec=self.spec,
            default_size=self.default_size,
            spatial_scale=self.spatial_scale,
            temporal_scale=self.temporal_scale,
            acceleration=self.acceleration,
            buffer_pool=self.buffer_pool,
            attention=attention,
            kernels=kernels,
            new_encoder=self.new_encoder,
            device=self.run_device,
            # Weights that accelerate moves between uses are not where a CUDA graph would read them.
            graphed=None if offloaded else self._graphed,
        )
