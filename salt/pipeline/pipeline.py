"""`SaltPipeline`: text (and image) to video with a Salt student, as diffusers' pipelines do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..memory import KVMemory, MemoryPolicy
from ..rollout import OnStepEnd
from ..schedule import Stepping
from .base import SaltPipelineBase
from .components import PipelineComponents
from .inputs import PipelineInputs, PromptAt
from .lora import lora_scale
from .memory_plan import memory_errors
from .prepare import PreparedRun, prepare
from .progress import Bar, CallbackTensors, OnStep, StepEnd, StepProgress
from .prompts import encode_prompts
from .run import Chunk, run_chunks, run_latents
from .source_video import SourceVideo
from .start_image import StartImage

OutputType = Literal["pil", "np", "pt", "latent"]
Callback = Callable[["SaltPipeline", int, float, CallbackTensors], Mapping[str, Tensor | None] | None]


@dataclass
class SaltPipelineOutput(BaseOutput):
    """frames: in the form of `output_type`. latents: [B, C, F, H, W], an image or video start included. seeds: one per
    clip.

    memory (and negative_memory, with guidance): ready to be extended or saved; None for bidirectional models.
    """

    frames: Tensor | np.ndarray | list[list[Image.Image]]
    latents: Tensor
    seeds: tuple[int, ...]
    memory: KVMemory | None = None
    negative_memory: KVMemory | None = None


class SaltPipeline(SaltPipelineBase):
    """Text (and image) to video with a Salt student.

    transformer: a student, or diffusers' Wan transformer, which is converted to one.
    vae: Wan's autoencoder. transformer and vae may be None in a pipeline that only encodes prompts.
    text_encoder, tokenizer: Wan's UMT5.
    image_encoder, image_processor: CLIP, for image-to-video students.
    student: the settings that it was trained with, a `StudentSpec` or its dict; a Wan transformer without them is taken
        as bidirectional.
    words: instead of UMT5, the settings of a `WordEmbedder` as a dict.
    default_size: pixels (H, W) where a call names none.
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    _guidance_scale = 1.0
    _num_timesteps = 0

    @property
    def guidance_scale(self) -> float:
        """Of the latest call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call is guided."""
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the latest call, over all its blocks."""
        return self._num_timesteps

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [B, L, D] of prompts and negative prompts, one row per clip, as `__call__` takes them.

        The clips of one prompt stand side by side. Without guidance the second is None. Embeddings that are passed in
        are repeated, not encoded. Default device and dtype: those of the transformer. Raises InputError in a pipeline
        without a text encoder, and for numbers of prompts that do not match.
        """
        inputs = PipelineInputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance_scale=2.0 if do_classifier_free_guidance else 1.0,
            num_videos_per_prompt=num_videos_per_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        if dtype is None and self.transformer is not None:
            dtype = self.transformer.dtype
        embeddings = encode_prompts(inputs, self._find_prompt_encoder(), device or self.run_device, dtype)
        prompt_embeds, negative_prompt_embeds = embeddings.prompt, embeddings.negative
        return prompt_embeds, negative_prompt_embeds

    def stream(
        self, prompt: str | Sequence[str] | None = None, negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None, width: int | None = None,
        num_frames: int | None = None, seconds: float | None = None,
        num_inference_steps: int | None = None, steps: Sequence[float] | None = None,
        num_first_steps: int | None = None, first_steps: Sequence[float] | None = None,
        shift: float | None = None, stepping: Stepping | None = None,
        guidance_scale: float = 1.0, num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None, image: StartImage | None = None, initial_latents: Tensor | None = None,
        video: SourceVideo | None = None, strength: float | None = None,
        memory: KVMemory | None = None, negative_memory: KVMemory | None = None,
        memory_policy: MemoryPolicy | str | None = None, history_latents: Tensor | None = None,
        prompt_schedule: Sequence[PromptAt] = (), fuse: bool = False,
        prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ["latents"],  # noqa: B006 - as in diffusers, never changed
        on_step: OnStep | None = None,
    ) -> Iterator[Chunk]:  # fmt: skip
        """Decoded blocks, each as soon as it is finished. Arguments as in `__call__`, which are checked at once.

        on_step: called before every model call; what it raises ends the stream and leaves the memory usable.
        """
        components, inputs = self.components_in_use(), PipelineInputs.from_arguments(locals())
        with memory_errors(components, inputs, self.decoder_kind):
            prepared, on_step_end = self._prepare(
                components, inputs, callback_on_step_end, callback_on_step_end_tensor_inputs
            )
        return self._chunks(components, inputs, prepared, on_step, on_step_end)

    def _chunks(
        self,
        components: PipelineComponents,
        inputs: PipelineInputs,
        prepared: PreparedRun,
        on_step: OnStep | None,
        on_step_end: OnStepEnd | None,
    ) -> Iterator[Chunk]:
        with memory_errors(components, inputs, self.decoder_kind):
            yield from run_chunks(components, prepared, self.new_decoder(), on_step, on_step_end)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        seconds: float | None = None,
        num_inference_steps: int | None = None,
        steps: Sequence[float] | None = None,
        num_first_steps: int | None = None,
        first_steps: Sequence[float] | None = None,
        shift: float | None = None,
        stepping: Stepping | None = None,
        guidance_scale: float = 1.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        image: StartImage | None = None,
        initial_latents: Tensor | None = None,
        video: SourceVideo | None = None,
        strength: float | None = None,
        memory: KVMemory | None = None,
        negative_memory: KVMemory | None = None,
        memory_policy: MemoryPolicy | str | None = None,
        history_latents: Tensor | None = None,
        prompt_schedule: Sequence[PromptAt] = (),
        fuse: bool = False,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ["latents"],  # noqa: B006 - as in diffusers, never changed
    ) -> SaltPipelineOutput | tuple:
        """A whole clip, or one per prompt. The other arguments are documented in `PipelineInputs`.

        output_type: `pil` lists of images, `np` [B, T, H, W, 3] in [0, 1], `pt` [B, T, 3, H, W] in [0, 1], or `latent`.
        return_dict False: (frames, latents, memory).
        attention_kwargs: {"scale": s}: LoRA adapters act s times.
        callback_on_step_end(pipeline, index, timestep, tensors): after every denoising step, counted over all blocks.
            tensors: those named in callback_on_step_end_tensor_inputs, of `latents` (the block's [B, C, F, H, W], clean
            after its last step), `prompt_embeds` and `negative_prompt_embeds`. It may return a dict; its `latents`
            replace the block's.
        Raises InputError for an argument that does not fit the model, the memory or another argument, NotFiniteError
        where the student computes NaN or infinity.
        """
        inputs = PipelineInputs.from_arguments(locals())
        if output_type not in get_args(OutputType):
            raise InputError("output_type", f"found {output_type!r}, expected pil, np, pt or latent")
        components = self.components_in_use()
        explained = memory_errors(components, inputs, self.decoder_kind)
        with lora_scale(self.transformer, attention_kwargs), explained:
            prepared, on_step_end = self._prepare(
                components, inputs, callback_on_step_end, callback_on_step_end_tensor_inputs
            )
            clip, frames = self._whole_clip(components, prepared, on_step_end, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return frames, clip, prepared.memory
        return SaltPipelineOutput(frames, clip, prepared.noise.seeds, prepared.memory, prepared.negative_memory)

    def _whole_clip(
        self,
        components: PipelineComponents,
        prepared: PreparedRun,
        on_step_end: OnStepEnd | None,
        output_type: OutputType,
    ) -> tuple[Tensor, Tensor | np.ndarray | list[list[Image.Image]]]:
        """Latents and frames of a clip."""
        bar: Bar = cast(Any, self).progress_bar(total=prepared.model_calls)
        parts: list[Tensor] = []
        pixels: list[Tensor] = []
        with StepProgress(bar) as progress:
            if output_type == "latent":
                parts = run_latents(components, prepared, self.new_decoder, progress.step, on_step_end)
            else:
                for chunk in run_chunks(components, prepared, self.new_decoder(), progress.step, on_step_end):
                    parts.append(chunk.latents)
                    pixels.append(chunk.pixels.cpu())
        clip = torch.cat(parts, dim=2)
        if output_type == "latent":
            return clip, clip
        return clip, self.video_processor.postprocess_video(torch.cat(pixels, dim=2), output_type=output_type)

    def _prepare(
        self, components: PipelineComponents, inputs: PipelineInputs, callback: Callback | None, tensors: Sequence[str]
    ) -> tuple[PreparedRun, OnStepEnd | None]:
        """The run of a call, and what the rollout calls after every denoising step."""
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            tensors = callback.tensor_inputs
        if unknown := [name for name in tensors if name not in self._callback_tensor_inputs]:
            names = ", ".join(self._callback_tensor_inputs)
            raise InputError(
                "callback_on_step_end_tensor_inputs", f"found {', '.join(unknown)}, expected some of {names}"
            )
        self.check_weights()
        prepared = prepare(components, inputs)
        self._guidance_scale, self._num_timesteps = inputs.guidance_scale, prepared.denoising_steps
        return prepared, StepEnd(partial(callback, self), tensors, prepared) if callback is not None else None
