"""A MODEL, CLIP and VAE of ComfyUI as the model of a live session (`salt.live.live_model.LiveModel`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.live.adapters import LoraStrength
from ...salt.live.controls import BlendMethod
from ...salt.live.live_model import LiveModelInfo
from ...salt.live.prompt_blend import mix_tensors
from ...salt.live.video_feed import PictureSource, VideoFeed
from ...salt.memory import KVMemory, MemoryPolicy
from ...salt.model_input import ModelInput
from ...salt.noise import NoiseSource, SeededNoise
from ...salt.schedule import Schedule
from ...salt.spec import StudentSpec
from ..io_types import Conditioning
from .comfy_model import ComfyModel, Conds, latent_channels, new_memory, pixels_per_latent
from .fingerprint import fingerprint
from .head_encoder import encode_image
from .model_sampling import scaled_noise
from .sampler import SamplerInputs
from .streaming_vae import ComfyStreamDecoder, ComfyStreamEncoder, LoadedEncoder, load_again
from .tiny_model import WordTable

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from ...salt.models.streaming_vae import FrameDecoder


@dataclass(frozen=True, eq=False)
class LivePrompt:
    """A prompt as a CONDITIONING holds it, and as ComfyUI has processed that for the MODEL."""

    conditioning: Conditioning
    conds: Conds


class LiveFlow:
    """The engine's model callable for prompts of this kind."""

    def __init__(self, model: ComfyModel) -> None:
        self.model = model

    def __call__(self, inputs: ModelInput[LivePrompt], /) -> Tensor:
        fields = {**vars(inputs), "conditioning": inputs.conditioning.conds}
        return self.model(ModelInput(**fields))


class LiveDecoder:
    """A decoder beside which the MODEL stays loaded. frames: latent frames in its largest forward."""

    temporal_scale = ComfyStreamDecoder.temporal_scale

    def __init__(self, stream: ComfyStreamDecoder, model: ModelPatcher, frames: int) -> None:
        self.stream, self.model, self.frames = stream, model, frames
        self.spatial_scale = stream.spatial_scale

    def reset(self) -> None:
        self.stream.reset()

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        pixels = self.stream.decode(latents_BCFHW)
        load_again(self.model, latents_BCFHW, self.frames)
        return pixels

    def fork(self) -> LiveDecoder:
        return LiveDecoder(self.stream.fork(), self.model, self.frames)

    @property
    def nbytes(self) -> int:
        return self.stream.nbytes


class ComfyLiveHost:
    """Created inside ComfyUI's sampling, and used as long as that lasts.

    size: latent (height, width). schedule: of the steps where no control says otherwise. frames_per_call: latent
    frames in the largest forward.
    """

    def __init__(
        self,
        inputs: SamplerInputs,
        clip: CLIP,
        vae: VAE,
        spec: StudentSpec,
        schedule: Schedule,
        policy: MemoryPolicy,
        size: tuple[int, int],
        frames_per_call: int,
    ) -> None:
        self.inputs, self.clip, self.vae, self.size = inputs, clip, vae, size
        self.patcher, self.frames_per_call = inputs.patcher, frames_per_call
        self.model = LiveFlow(inputs.model)
        self.encode_beside = None  # ComfyUI loads and unloads models in one thread
        words = word_table(clip)
        self.info = LiveModelInfo(
            fingerprint=fingerprint(self.patcher),
            width=size[1] * pixels_per_latent(self.patcher),
            height=size[0] * pixels_per_latent(self.patcher),
            frames_per_block=spec.frames_per_block,
            device=inputs.noise.device,
            schedule=schedule,
            policy=policy,
            independent_first_frame=spec.independent_first_frame,
            stepping=spec.stepping,
            channels=latent_channels(self.patcher),
            spatial_scale=pixels_per_latent(self.patcher),
            fps=spec.fps,
            shot_prefix="" if words is not None else spec.shot_prefix,
            words=() if words is None else words.embedder.vocabulary,
            gives_first_frame=spec.gives_first_frame,
        )

    def check_prompt(self, text: str, field: str = "prompt") -> None:
        if (table := word_table(self.clip)) is not None:
            table.embedder.check_prompt(field, text)

    @torch.inference_mode()
    def encode(self, text: str) -> LivePrompt:
        conditioning = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        load_again(self.patcher, self.inputs.noise, self.frames_per_call)  # the text encoder may have taken its place
        return self.processed(conditioning)

    @torch.inference_mode()
    def mix(self, parts: Sequence[tuple[LivePrompt, float]], method: BlendMethod) -> LivePrompt:
        texts = [(part.conditioning[0][0], weight) for part, weight in parts]
        longest = max(text.shape[1] for text, _ in texts)
        padded = [(torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[1])), weight) for t, weight in texts]
        return self.processed([(mix_tensors(padded, method), parts[0][0].conditioning[0][1])])

    def processed(self, conditioning: Conditioning) -> LivePrompt:
        """As ComfyUI's sampling does it before a run."""
        from comfy.sampler_helpers import convert_cond
        from comfy.samplers import process_conds

        given, conds = self.inputs, {"positive": convert_cond(conditioning)}
        done = process_conds(
            given.patcher.model, given.noise, conds, given.noise.device, given.latent, given.mask, given.seed
        )
        return LivePrompt(conditioning, done["positive"])

    def new_memory(self, policy: MemoryPolicy) -> KVMemory:
        return new_memory(self.patcher, policy, 1, *self.size)

    def use_loras(self, loras: Sequence[LoraStrength]) -> None:
        """Nothing: ComfyUI merges a LoRA into the MODEL's weights, so none is loaded beside them."""

    def memory_fingerprint(self) -> str:
        return self.info.fingerprint

    def noise(self, seed: int) -> NoiseSource:
        device = self.inputs.noise.device
        return scaled_noise(SeededNoise(seed, 1, self.info.channels, *self.size, device=device), self.patcher)

    def new_feed(self, source: PictureSource) -> VideoFeed:
        """Pictures of a camera or a file, encoded by the VAE, for a `LiveSession`."""
        encoder = LoadedEncoder(ComfyStreamEncoder(self.vae), self.patcher, self.frames_per_call)
        return VideoFeed(encoder, (self.info.height, self.info.width), source)

    def new_decoder(self) -> FrameDecoder:
        return LiveDecoder(ComfyStreamDecoder(self.vae), self.patcher, self.frames_per_call)

    def encode_image(self, pixels_B31HW: Tensor) -> Tensor:
        latents = encode_image(self.vae, pixels_B31HW)
        load_again(self.patcher, latents, self.frames_per_call)
        return latents


def word_table(clip: CLIP) -> WordTable | None:
    """salt-tiny's words, where they are the CLIP."""
    model = clip.cond_stage_model
    return model if isinstance(model, WordTable) else None
