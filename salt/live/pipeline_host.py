"""A `SaltPipeline` as the host of live sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..acceleration.cuda_streams import side_stream
from ..acceleration.free_memory import check_bytes
from ..acceleration.transfers import to_device
from ..conditioning import Conditioning
from ..errors import InputError
from ..io.pixel_sizes import check_multiple
from ..memory import KVMemory, MemoryPolicy, estimate_bytes
from ..memory.far import memory_class
from ..models.causal_model import CausalModel
from ..models.fingerprint import fingerprint
from ..models.streaming_vae import FrameDecoder, encode_pixels
from ..models.word_embedder import WordEmbedder
from ..noise import NoiseSource, SeededNoise
from ..pipeline import SaltPipeline
from ..pipeline.anyflow import check_policy
from ..pipeline.lora import AdapterState, adapter_state, adapter_strengths, set_strengths
from ..pipeline.run import InFloat32
from .adapters import LoraStrength, acting
from .controls import BlendMethod
from .live_model import LiveModelInfo
from .prompt_blend import mix_tensors
from .video_feed import PictureSource, VideoFeed


class PipelineHost:
    """A `SaltPipeline` as the model of a `LiveSession`: a causal text-to-video student.

    width, height: pixels; the pipeline's own size by default.
    Raises InputError for a bidirectional or image-to-video model, and for a size that does not fit the model or the
    machine.
    """

    def __init__(self, pipe: SaltPipeline, width: int | None = None, height: int | None = None) -> None:
        components = pipe.components_in_use()
        spec, transformer = components.spec, components.transformer
        if components.bidirectional or components.image_to_video:
            kind = "bidirectional" if components.bidirectional else "image-to-video"
            raise InputError("model", f"found a {kind} model, expected a causal text-to-video student")
        pipe.check_weights()
        width, height = width or components.default_size[1], height or components.default_size[0]
        scale = components.spatial_scale
        _, patch_height, patch_width = transformer.config.patch_size
        for name, value, unit in (("width", width, scale * patch_width), ("height", height, scale * patch_height)):
            check_multiple(name, value, unit)
        self.pipe, self.encoder, self.offloaded = pipe, components.text_encoder, components.offloaded
        self._encoding = threading.Lock()  # two threads may ask
        self.latent_size = (height // scale, width // scale)
        self.geometry = transformer.memory_geometry(1, *self.latent_size)
        self.dtype = transformer.dtype
        self._check_memory(width, height, spec.frames_per_block, components.temporal_scale, components.device)
        self._used: tuple[tuple[LoraStrength, ...], AdapterState] | None = None
        strengths = adapter_strengths(transformer)
        loras = tuple(LoraStrength(name, strength) for name, strength in strengths.items())
        if loras:
            set_strengths(transformer, dict.fromkeys(sorted(strengths), 1.0))
        identity = fingerprint(transformer)
        self.flow_map = components.flow_map
        self.model = InFloat32(CausalModel(components.graphed or transformer, self.flow_map), transformer.dtype)
        words = self.encoder.vocabulary if isinstance(self.encoder, WordEmbedder) else ()
        self.info = LiveModelInfo(
            fingerprint=identity,
            width=width,
            height=height,
            frames_per_block=spec.frames_per_block,
            device=components.device,
            schedule=spec.schedule,
            policy=components.acceleration.policy(spec.policy),
            independent_first_frame=spec.independent_first_frame,
            stepping=spec.stepping,
            fps=spec.fps,
            shot_prefix=spec.shot_prefix,
            temporal_scale=components.temporal_scale,
            spatial_scale=scale,
            channels=transformer.config.out_channels,
            words=words,
            loras=loras,
            gives_first_frame=spec.gives_first_frame,
        )
        self.use_loras(loras)

    def _check_memory(self, width: int, height: int, frames: int, temporal_scale: int, device: torch.device) -> None:
        """Raise InputError about the size where not even one block of `frames` latent frames fits into memory."""
        pixels = width * height
        needed = estimate_bytes(MemoryPolicy(), self.geometry, self.dtype, frames)
        needed += 4 * 3 * frames * temporal_scale * pixels  # of the block's frames, in float32
        larger = "width" if width >= height else "height"
        check_bytes(larger, needed, device, f"a block of {width}x{height} pixels", "pixels", pixels)

    def check_prompt(self, text: str, field: str = "prompt") -> None:
        if self.encoder is None:
            raise InputError(field, "needs a text encoder, and this pipeline has none")
        if isinstance(self.encoder, WordEmbedder):
            self.encoder.check_prompt(field, text)

    @torch.no_grad()
    def encode(self, text: str) -> Conditioning:
        assert self.encoder is not None
        with self._encoding:
            return Conditioning(to_device(self.encoder.encode([text]).to(self.dtype), self.info.device))

    @property
    def encode_beside(self) -> Callable[[str], Callable[[], Conditioning]] | None:
        """None for salt-tiny's table of words, which takes no time, and for an encoder that accelerate's offloading
        moves in the student's place."""
        return None if isinstance(self.encoder, WordEmbedder) or self.offloaded else self._encode_beside

    @torch.no_grad()
    def _encode_beside(self, text: str) -> Callable[[], Conditioning]:
        """On a CUDA stream of its own, for which this thread waits; in main memory until it is asked for."""
        assert self.encoder is not None
        device = self.info.device
        stream = side_stream(device, "text") if device.type == "cuda" else None
        with self._encoding, torch.cuda.stream(stream):  # nothing, where there is no stream
            text_BLD = self.encoder.encode([text]).to(self.dtype).cpu()
        return lambda: Conditioning(to_device(text_BLD, device))

    @torch.no_grad()
    def mix(self, parts: Sequence[tuple[Conditioning, float]], method: BlendMethod) -> Conditioning:
        return replace(parts[0][0], text=mix_tensors([(part.text, weight) for part, weight in parts], method))

    def new_memory(self, policy: MemoryPolicy) -> KVMemory:
        check_policy(policy, self.pipe.transformer)
        kind = memory_class(policy)
        return kind(policy, self.geometry, self.dtype, self.info.device, fingerprint=self.info.fingerprint)

    def use_loras(self, loras: Sequence[LoraStrength]) -> None:
        """Adapters of the pipeline's transformer, kept apart from its weights. Nothing happens where they act so."""
        transformer = self.pipe.transformer
        if not self.info.loras:
            return
        wanted = acting(loras)
        if self._used == (wanted, adapter_state(transformer)):
            return
        set_strengths(transformer, {lora.name: lora.strength for lora in wanted})
        self._used = wanted, adapter_state(transformer)
        # What was computed from the prompts belongs to the weights as they were, and so does a CUDA graph.
        self.model.model = CausalModel(self.pipe.components_in_use().graphed or transformer, self.flow_map)

    def memory_fingerprint(self) -> str:
        return fingerprint(self.pipe.transformer) if self.info.loras else self.info.fingerprint

    def noise(self, seed: int) -> NoiseSource:
        return SeededNoise(seed, 1, self.info.channels, *self.latent_size, device=self.info.device)

    def new_feed(self, source: PictureSource) -> VideoFeed:
        """Pictures of a camera or a file, encoded by the pipeline's encoder, for a `LiveSession`."""
        return VideoFeed(self.pipe.new_encoder(), (self.info.height, self.info.width), source)

    def new_decoder(self) -> FrameDecoder:
        return self.pipe.new_decoder()

    def encode_image(self, pixels_B31HW: Tensor) -> Tensor:
        return encode_pixels(self.pipe.vae, pixels_B31HW)
