"""`SaltPipeline`: the engine's rooms in a row, with diffusers' habits of loading, saving, moving and offloading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..acceleration.cuda_graphs import CUDAGraphTransformer
from ..acceleration.presets import PREFERENCES, Preference, compile_blocks, fp8_linears, speed_of
from ..conditioning import Conditioning
from ..memory import BufferPool, KVMemory
from ..model_input import FlowModel, ModelInput
from ..models.streaming_vae import FrameDecoder, Tiling, WanStreamDecoder
from ..models.text_encoder import TextEncoder, UMT5TextEncoder
from ..models.transformer_salt import CausalModel, SaltTransformer3DModel
from ..models.word_embedder import WordEmbedder
from ..rollout import Block, rollout
from ..sampling import BidirectionalModel, sample_bidirectional
from ..schedule import step_list
from ..spec import StudentSpec
from .async_decoder import AsyncDecoder, in_turn, made_ahead
from .components import TINY_NAME, load_components, promote, tiny_folder
from .inputs import FPS, PipelineInputs
from .prepare import PreparedRun, prepare
from .progress import OnStep, StepProgress

# Wan 2.1's own sizes and steps, for folders that say nothing of a student.
WAN_SIZE = (480, 832)
WAN_SPEC = StudentSpec(frames_per_block=0, steps=step_list(50))
# Latent frames that a decoder must have seen to go on without a visible seam (error 3e-5 with random weights).
WARM_UP = 30


@dataclass(frozen=True)
class Chunk:
    """A finished block, decoded.

    pixels: [B, 3, T, H, W] in [-1, 1], float32, on the decoder's device; frames: the same as uint8 [B, T, H, W, 3] on
    the CPU. latents: [B, C, F, H, W], what they were decoded from. Those of a start
    come with the first block. first_frame: index of the first of `pixels` in this clip. seconds: wall time of the
    block, decoding included. memory: as the rollout goes on writing it; complete once the stream is exhausted.
    """

    block: Block
    pixels: Tensor
    frames: Tensor
    latents: Tensor
    first_frame: int
    seconds: float
    fps: int = FPS
    memory: KVMemory | None = None


@dataclass
class SaltPipelineOutput(BaseOutput):
    """frames: as asked for by `output_type`; latents: [B, C, F, H, W], a start included; seeds: one per prompt.

    memory (and negative_memory, with guidance): ready to be extended or saved; None for a bidirectional student.
    """

    frames: Any
    latents: Tensor
    seeds: tuple[int, ...]
    memory: KVMemory | None = None
    negative_memory: KVMemory | None = None


class SaltPipeline(DiffusionPipeline):
    """Text (and image) to video with a Salt student.

    transformer: a student, or diffusers' Wan transformer, which is made one. text_encoder and tokenizer: Wan's UMT5; or
    words: the settings of a `WordEmbedder`, as a dict. image_encoder and image_processor: CLIP, for
    image-to-video students. student: the recipe, a `StudentSpec` or its dict; a bare Wan transformer without one is
    taken as bidirectional. default_size: pixels (H, W) where a call names none.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "image_encoder", "image_processor"]

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
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
        self.spec = student if isinstance(student, StudentSpec) else StudentSpec.from_dict(student)
        self.transformer: SaltTransformer3DModel
        self.vae: AutoencoderKLWan
        self.register_modules(
            transformer=promote(transformer),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_processor=image_processor,
        )
        size = tuple(default_size or WAN_SIZE)
        self.register_to_config(student=self.spec.to_dict(), words=words, default_size=list(size))
        self.default_size: tuple[int, int] = (int(size[0]), int(size[1]))
        self.spatial_scale, self.temporal_scale = (
            int(vae.config[f"scale_factor_{axis}"]) for axis in ("spatial", "temporal")
        )
        self.video_processor = VideoProcessor(vae_scale_factor=self.spatial_scale)
        self._text: TextEncoder | None = WordEmbedder(**words) if words else None
        self.speed = PREFERENCES["exact"]
        self._graphed: CUDAGraphTransformer | None = None
        self.stores = BufferPool()
        self.use_wan()

    @classmethod
    def tiny(cls, **options: Any) -> SaltPipeline:
        """The embedded default, salt-tiny. Raises FileNotFoundError where its weights are not installed."""
        return cls.from_pretrained(tiny_folder(), **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> SaltPipeline:
        """As `DiffusionPipeline.from_pretrained`; also reads Wan 2.1's diffusers folders, and the name `salt-tiny`."""
        name = pretrained_model_name_or_path
        folder = tiny_folder() if str(name) == TINY_NAME and not Path(name).exists() else name
        return super().from_pretrained(folder, **kwargs)

    @classmethod
    def from_single_file(
        cls,
        checkpoint: str | Path,
        *,
        parts: str | Path,
        weights: Literal["auto", "ema", "regular", "critic"] = "auto",
        lora: str | Path | None = None,
        student: StudentSpec | None = None,
        text: TextEncoder | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> SaltPipeline:
        """A student in any file that `salt.checkpoints` reads, with the other parts from a folder as diffusers lays it.

        student: the recipe, where the file names none (`StudentSpec()`, blocks of 3 in 4 steps, is assumed then).
        text: an encoder to use instead of loading the folder's. Errors: `CheckpointError`, FileNotFoundError.
        """
        from ..checkpoints import load_student, read_checkpoint

        others = load_components(parts, torch_dtype)
        spec = student or read_checkpoint(checkpoint, weights).spec or StudentSpec()
        transformer = load_student(checkpoint, weights=weights, dtype=torch_dtype, lora=lora)
        umt5 = UMT5TextEncoder.from_pretrained(others.text) if text is None and others.text else None
        pipe = cls(
            transformer,
            others.vae,
            text_encoder=umt5.model if umt5 else None,
            tokenizer=umt5.tokenizer if umt5 else None,
            image_encoder=others.image_encoder,
            image_processor=others.image_processor,
            student=spec,
            words=others.words,
            default_size=others.default_size,
        )
        if text is not None:
            pipe.text = text
        return pipe

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `DiffusionPipeline.save_pretrained`; the transformer is named as diffusers' class, which reads it too."""
        self.register_to_config(
            transformer=("diffusers", "WanTransformer3DModel"),
            student=self.spec.to_dict(),
            default_size=list(self.default_size),
        )
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def text(self) -> TextEncoder:
        """What encodes prompts; can be set, to a `CachedTextEncoder` say. Raises ValueError where there is none."""
        if self._text is not None:
            return self._text
        if self.text_encoder is None:
            raise ValueError("text encoder: found none, expected text_encoder and tokenizer, or words")
        return UMT5TextEncoder(self.text_encoder, self.tokenizer, device=self.run_device)

    @text.setter
    def text(self, encoder: TextEncoder) -> None:
        self._text = encoder

    @property
    def run_device(self) -> torch.device:
        """Where the transformer computes, also while accelerate keeps its weights elsewhere."""
        return self._execution_device if hasattr(self.transformer, "_hf_hook") else self.transformer.device

    def prefer(self, preference: Preference) -> None:
        """What to prefer from now on: `exact` (the default), `fast`, `fastest` or `low memory`.

        Call it once the pipeline is on its device; compiling happens in the first clip. Compiled or quantised blocks
        stay so: after `fast` or `fastest` make a new pipeline for another word. Raises ValueError for another word, or
        a device or installation that cannot.
        """
        speed = speed_of(preference)
        if self.speed.compiled and speed != self.speed:
            raise ValueError(f"prefer: found {preference!r} on a compiled pipeline, expected a new pipeline")
        if speed.fp8:
            fp8_linears(self.transformer)
        if speed.compiled and not self.speed.compiled:
            compile_blocks(self.transformer)
        if speed.text_waits and self.text_encoder is not None:
            # It sits on the CPU, and `text` sends it to the device for every prompt.
            self._text = UMT5TextEncoder(self.text_encoder.cpu(), self.tokenizer, device=self.run_device)
        self.speed = speed
        self._record_anew()

    def to(self, *args: Any, **kwargs: Any) -> SaltPipeline:
        """As `DiffusionPipeline.to`. What was recorded is forgotten: it reads the weights where they lay before."""
        super().to(*args, **kwargs)
        self._record_anew()
        return self

    def _record_anew(self) -> None:
        records = self.speed.compiled and self.run_device.type == "cuda"
        self._graphed = CUDAGraphTransformer(self.transformer) if records else None

    def use_wan(self, tiling: Tiling | None = None) -> None:
        """Decode with Wan's VAE (the default), in tiles where frames are too large for the device."""

        def decoder() -> WanStreamDecoder:
            return WanStreamDecoder(self.vae, tiling or (Tiling() if self.speed.tiles else None))

        self.new_decoder: Callable[[], FrameDecoder] = decoder

    def use_taehv(self, path: str | Path) -> None:
        """Decode with the tiny decoder `taew2_1`: some hundred times cheaper, a little softer."""
        from ..models.taehv import TinyStreamDecoder, load_taehv

        model = load_taehv(path)
        self.new_decoder = lambda: TinyStreamDecoder(model.to(self.run_device))

    def stream(self, prompt: str | Sequence[str], *, on_step: OnStep | None = None, **options: Any) -> Iterator[Chunk]:
        """Decoded blocks, each as soon as it is finished. options: see `PipelineInputs`, which also checks them.

        on_step: called before every model call; what it raises ends the stream and leaves the memory usable.
        """
        return self._chunks(prepare(self, prompt, PipelineInputs(**options)), on_step)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        callback_on_step_end: Callable[[Any, int, float, dict], Any] | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> SaltPipelineOutput | tuple:
        """The whole clip. options: see `PipelineInputs`, which also checks them.

        output_type: `pil` lists of images, `np` [B, T, H, W, 3] in [0, 1], `pt` [B, T, 3, H, W] in [0, 1], or `latent`.
        callback_on_step_end(pipeline, index, timestep, {"step": Step}): after every model call.
        return_dict False: (frames, latents, memory).
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type: found {output_type!r}, expected pil, np, pt or latent")
        job = prepare(self, prompt, PipelineInputs(**options))
        latents: list[Tensor] = []
        pixels: list[Tensor] = []
        with StepProgress(self, job, callback_on_step_end) as on_step:
            if output_type == "latent":
                given = [] if job.initial_latents is None else [job.initial_latents]
                latents = [*given, *(block.latents for block in self._blocks(job, on_step))]
            else:
                for chunk in self._chunks(job, on_step):
                    latents.append(chunk.latents)
                    pixels.append(chunk.pixels.cpu())
        made = torch.cat(latents, dim=2)
        frames: Any = made
        if output_type != "latent":
            frames = self.video_processor.postprocess_video(torch.cat(pixels, dim=2), output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return frames, made, job.memory
        return SaltPipelineOutput(frames, made, job.noise.seeds, job.memory, job.negative_memory)

    @torch.no_grad()
    def _chunks(self, job: PreparedRun, on_step: OnStep | None) -> Iterator[Chunk]:
        projector, shown = AsyncDecoder(self.new_decoder(), self.run_device), 0
        if job.history_latents is not None:
            projector.begin(job.history_latents[:, :, -WARM_UP:])
        lead = [] if job.initial_latents is None else [job.initial_latents]

        def latents_of(block: Block) -> Tensor:
            return block.latents if block.index else torch.cat([*lead, block.latents], dim=2)

        # Weights that come and go (accelerate's offloading) would be fetched and sent away by turns.
        ordered = made_ahead if projector.aside and not hasattr(self.transformer, "_hf_hook") else in_turn
        began = time.perf_counter()
        made = self._blocks(job, on_step)
        for block, projection in ordered(made, lambda block: projector.begin(latents_of(block))):
            ready = projection.wait()
            seconds = time.perf_counter() - began
            yield Chunk(block, ready.pixels, ready.frames, latents_of(block), shown, seconds, memory=job.memory)
            shown += ready.pixels.shape[2]
            began = time.perf_counter()

    @torch.no_grad()
    def _blocks(self, job: PreparedRun, on_step: OnStep | None) -> Iterator[Block]:
        frames = job.length.frames
        if job.memory is None:
            began, model = time.perf_counter(), _InFloat32(BidirectionalModel(self.transformer), self.transformer.dtype)
            latents = sample_bidirectional(
                model,
                job.conditioning.at(0).conditioning,
                job.noise,
                frames,
                job.settings,
                negative=job.negative,
                on_step=on_step,
            )
            seconds = time.perf_counter() - began
            yield Block(0, 1, 0, frames, latents, job.settings.schedule.nfe, seconds, job.noise.seeds)
            return
        if job.negative is not None and job.negative_memory is None:
            job.negative_memory = job.memory.empty_like()
            if self.speed.compiled:
                self.stores.furnish(job.negative_memory)
        # Weights that accelerate moves between uses are not where a recording would read them.
        graphed = None if hasattr(self.transformer, "_hf_hook") else self._graphed
        yield from rollout(
            _InFloat32(CausalModel(cast(Any, graphed or self.transformer)), self.transformer.dtype),
            job.conditioning,
            job.memory,
            job.noise,
            frames,
            job.settings,
            negative=job.negative,
            negative_memory=job.negative_memory,
            initial_latents=job.initial_latents,
            history_latents=job.history_latents,
            on_step=on_step,
        )


class _InFloat32:
    """A model in its own dtype for latents and timesteps in float32: a timestep of 937.5 has no bfloat16."""

    def __init__(self, model: FlowModel[Conditioning], dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        return self.model(replace(inputs, x=inputs.x.to(self.dtype))).float()
