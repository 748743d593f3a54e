"""ComfyUI's own Wan VAE as streaming decoder and encoder: latent frame by latent frame, so that memory stays flat.

The VAE's own modules do the work, with ComfyUI's casts and offloading; the causal cache is the stream's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.acceleration.transfers import to_main_memory
from ...salt.errors import InputError
from ...salt.models.pixel_stream import PixelStream
from .clip_size import frame_count
from .core_versions import at_once, joined_frames

if TYPE_CHECKING:
    from comfy.latent_formats import LatentFormat
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

# For up to four latent frames ComfyUI's estimate is a still's, which has no cache: 2200 values a pixel; a clip's is
# 7000. A frame of a stream was measured at 5600 (0.27) to 7700 (0.8), cache included.
ESTIMATED_FRAMES, VALUES_PER_PIXEL = 5, 8000
# ComfyUI's causal cache: for every module of decoder or encoder None, "Rep", or the latest frames [B, C, T, H, W].
FrameCache = list[Tensor | str | None]
VAES = {16: "Wan 2.1's VAE (wan_2.1_vae.safetensors)", 48: "Wan 2.2's VAE (wan2.2_vae.safetensors)"}  # by channels


def keep_two_frames(cache: FrameCache, before: FrameCache) -> None:
    """A causal convolution looks back two frames; ComfyUI, which passes two at once, caches only its input."""
    for i, (old, new) in enumerate(zip(before, cache, strict=True)):
        if isinstance(old, Tensor) and isinstance(new, Tensor) and new.shape[2] < 2:
            cache[i] = torch.cat([old[:, :, -1:].to(new), new], dim=2)


class ComfyStreamDecoder:
    """A `salt.models.streaming_vae.FrameDecoder` on a ComfyUI VAE: every call continues the clip of the call before.

    Raises InputError for a VAE that is not Wan's.
    """

    temporal_scale = 4

    def __init__(self, vae: VAE) -> None:
        if not is_wan_vae(vae):
            raise wrong_vae(vae)
        self.vae, self.spatial_scale = vae, spatial_scale(vae)
        self.cache: FrameCache | None = None

    def reset(self) -> None:
        self.cache = None

    def fork(self) -> ComfyStreamDecoder:
        twin = ComfyStreamDecoder(self.vae)
        if self.cache is not None:  # its entries are replaced, never written to
            twin.cache = [to_main_memory(e) if isinstance(e, Tensor) else e for e in self.cache]
        return twin

    @property
    def nbytes(self) -> int:
        return sum(e.numel() * e.element_size() for e in self.cache or () if isinstance(e, Tensor))

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """Latents [B, C, F, H, W], normalised -> pixels [B, 3, T, sH, sW] in [-1, 1]; T is 4F, at the start 4F - 3."""
        frames = latent_format(self.vae).process_out(latents_BCFHW).split(1, dim=2)
        return torch.cat([self.decode_frame(frame) for frame in frames], dim=2) * 2 - 1

    def decode_frame(self, latents: Tensor) -> Tensor:
        """One latent frame [B, C, 1, H, W], as a LATENT holds it -> its pixel frames [B, 3, T, sH, sW] in [0, 1].

        Raises ComfyUI's InterruptProcessingException when the user has cancelled.
        """
        import comfy.model_management as management

        vae, model = self.vae, self.vae.first_stage_model
        management.throw_exception_if_processing_interrupted()
        batch, channels, _, height, width = latents.shape
        needed = max(
            vae.memory_used_decode((1, channels, ESTIMATED_FRAMES, height, width), vae.vae_dtype),
            VALUES_PER_PIXEL * self.spatial_scale**2 * height * width * vae.vae_dtype.itemsize,
        )
        management.load_models_gpu([vae.patcher], memory_required=batch * needed, force_full_load=vae.disable_offload)
        is_first = self.cache is None
        cache: FrameCache = self.cache or [None for _ in model.decoder.modules()]
        cache = [e.to(vae.device, non_blocking=True) if isinstance(e, Tensor) else e for e in cache]  # of a fork
        self.cache, before = cache, list(cache)
        with torch.inference_mode():
            z = model.conv2(latents.to(vae.device, vae.vae_dtype))
            if is_wan22_vae(vae):
                patches = model.decoder(z, feat_cache=cache, feat_idx=[0], first_chunk=is_first)
                pixels = unpatchify(patches)
            else:
                pixels = joined_frames(model.decoder(z, feat_cache=cache, feat_idx=[0]))
            keep_two_frames(cache, before)
            return vae.process_output(pixels.to(vae.output_device).float())


class ComfyStreamEncoder:
    """A `salt.models.pixel_stream.FrameEncoder` on a ComfyUI VAE: every call continues the clip of the call before.

    Raises InputError for a VAE that is not Wan's.
    """

    temporal_scale = 4

    def __init__(self, vae: VAE) -> None:
        if not is_wan_vae(vae):
            raise wrong_vae(vae)
        self.vae, self.spatial_scale = vae, spatial_scale(vae)
        self.reset()

    def reset(self) -> None:
        self.stream = PixelStream(self.spatial_scale, self.temporal_scale)
        self.cache: FrameCache = []

    def fork(self) -> ComfyStreamEncoder:
        twin = ComfyStreamEncoder(self.vae)
        twin.stream = self.stream.copied()
        twin.cache = [to_main_memory(e) if isinstance(e, Tensor) else e for e in self.cache]
        return twin

    @property
    def nbytes(self) -> int:
        return self.stream.nbytes + sum(e.numel() * e.element_size() for e in self.cache if isinstance(e, Tensor))

    def encode(self, pixels_B3THW: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [-1, 1] -> normalised latents [B, C, F, H/s, W/s]; see `FrameEncoder`."""
        return latent_format(self.vae).process_in(self.encode_samples(pixels_B3THW))

    def encode_samples(self, pixels_B3THW: Tensor) -> Tensor:
        """The same as a LATENT holds them."""
        batch, _, _, height, width = pixels_B3THW.shape
        size = (height // self.spatial_scale, width // self.spatial_scale)
        frames = [self._encode_frame(group) for group in self.stream.groups(pixels_B3THW)]
        return torch.cat(frames or [torch.empty(batch, self.vae.latent_channels, 0, *size)], dim=2)

    def _encode_frame(self, pixels: Tensor) -> Tensor:
        """The pixels of one latent frame -> that frame [B, C, 1, h, w], as a LATENT holds it."""
        import comfy.model_management as management

        vae, model = self.vae, self.vae.first_stage_model
        management.throw_exception_if_processing_interrupted()
        needed = vae.memory_used_encode(pixels.shape, vae.vae_dtype)
        management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
        cache: FrameCache = self.cache or [None for _ in model.encoder.modules()]
        cache = [e.to(vae.device, non_blocking=True) if isinstance(e, Tensor) else e for e in cache]  # of a fork
        self.cache, before = cache, list(cache)
        with torch.inference_mode():
            x = patchified(vae, pixels.to(vae.device, vae.vae_dtype))
            moments = model.conv1(model.encoder(x, feat_cache=cache, feat_idx=[0], **at_once(model.encoder)))
            keep_two_frames(cache, before)
            return moments.chunk(2, dim=1)[0].to(vae.output_device).float()


class LoadedEncoder:
    """An encoder beside which the MODEL stays loaded. frames: latent frames in its largest forward."""

    temporal_scale = ComfyStreamEncoder.temporal_scale

    def __init__(self, stream: ComfyStreamEncoder, model: ModelPatcher, frames: int) -> None:
        self.stream, self.model, self.frames = stream, model, frames
        self.spatial_scale = stream.spatial_scale

    def reset(self) -> None:
        self.stream.reset()

    def encode(self, pixels_B3THW: Tensor) -> Tensor:
        """As of the stream, on the MODEL's device."""
        latents = self.stream.encode(pixels_B3THW)
        if latents.shape[2]:
            load_again(self.model, latents, self.frames)
        return latents.to(self.model.load_device)

    def fork(self) -> LoadedEncoder:
        return LoadedEncoder(self.stream.fork(), self.model, self.frames)

    @property
    def nbytes(self) -> int:
        return self.stream.nbytes


def load_again(model: ModelPatcher, latents: Tensor, frames: int) -> None:
    """A MODEL that ComfyUI may have unloaded to make room for a VAE. frames: latent frames in its largest forward."""
    from comfy.model_management import load_models_gpu

    needed = model.model.memory_required([*latents.shape[:2], frames, *latents.shape[3:]])
    load_models_gpu([model], memory_required=needed)


def is_wan_vae(vae: VAE) -> bool:
    model = getattr(vae, "first_stage_model", None)
    modules = ("comfy.ldm.wan.vae", "comfy.ldm.wan.vae2_2")
    return type(model).__name__ == "WanVAE" and type(model).__module__ in modules


def is_wan22_vae(vae: VAE) -> bool:
    return type(vae.first_stage_model).__module__ == "comfy.ldm.wan.vae2_2"


def spatial_scale(vae: VAE) -> int:
    """Rows, and columns, of pixels in a latent's."""
    return 16 if is_wan22_vae(vae) else 8


def latent_format(vae: VAE) -> LatentFormat:
    from comfy.latent_formats import Wan21, Wan22

    return Wan22() if is_wan22_vae(vae) else Wan21()


def patchified(vae: VAE, pixels: Tensor) -> Tensor:
    """Pixels [B, 3, T, H, W] as the VAE's encoder takes them: Wan 2.2's as patches [B, 12, T, H / 2, W / 2]."""
    if not is_wan22_vae(vae):
        return pixels
    from comfy.ldm.wan.vae2_2 import patchify

    return patchify(pixels, patch_size=2)


def unpatchify(patches: Tensor) -> Tensor:
    """The output of Wan 2.2's decoder [B, 12, T, H, W] as pixels [B, 3, T, 2H, 2W]."""
    from comfy.ldm.wan.vae2_2 import unpatchify as of_core

    return of_core(patches, patch_size=2)


def wrong_vae(vae: VAE) -> InputError:
    found = type(getattr(vae, "first_stage_model", None)).__name__
    return InputError(
        "vae", f"found {found}, expected Wan 2.1's VAE (wan_2.1_vae.safetensors) or Wan 2.2's in models/vae"
    )


def check_vae(vae: VAE, channels: int) -> None:
    """Raises InputError for a VAE that is not Wan's, or not for the latents of a MODEL, which have so many channels."""
    if not is_wan_vae(vae):
        raise wrong_vae(vae)
    if vae.latent_channels != channels:
        found, expected = (VAES.get(n, f"one of {n} latent channels") for n in (vae.latent_channels, channels))
        raise InputError("vae", f"found {found}, expected the MODEL's, {expected}")


def check_video_latents(vae: VAE, samples: Tensor) -> None:
    """Raises InputError for a VAE that is not for video, and for latents that are not of its kind."""
    if not is_wan_vae(vae) and getattr(vae, "latent_dim", None) != 3:
        raise wrong_vae(vae)
    if samples.ndim != 5 or samples.shape[1] != vae.latent_channels:
        expected = f"a video latent [B, {vae.latent_channels}, F, H, W] as this VAE takes it"
        raise InputError("latents", f"found shape {list(samples.shape)}, expected {expected}")


def decode_clips(vae: VAE, samples: Tensor) -> Tensor:
    """Whole clips, frame by frame: samples [B, C, F, H, W] of a LATENT -> images [B * T, sH, sW, 3] in [0, 1].

    One clip of a batch after another, so that the memory the VAE needs grows neither with the clip nor with the batch.
    """
    import comfy.utils

    decoder = ComfyStreamDecoder(vae)
    batch, _, frames, height, width = samples.shape
    # Allocated once: frames are written into their place.
    scale = decoder.spatial_scale
    images = torch.empty(batch, frame_count(frames), scale * height, scale * width, 3, device=vae.output_device)
    bar = comfy.utils.ProgressBar(batch * frames)
    for clip, clip_images in zip(samples.split(1), images, strict=True):
        decoder.reset()
        start = 0
        for latent in clip.split(1, dim=2):
            pixels = decoder.decode_frame(latent)[0].permute(1, 2, 3, 0)
            clip_images[start : start + pixels.shape[0]] = pixels
            start += pixels.shape[0]
            bar.update(1)
    return images.flatten(0, 1)
