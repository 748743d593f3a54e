"""Host 1: *Salt Decode (streaming)*. Core's own Wan VAE, frame by frame, so that memory does not grow with the clip."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from .io_types import schema

log = logging.getLogger(__name__)
# For up to four latent frames core's estimate is a still's, which has no cache: 2200 values a pixel. A frame of a
# stream was measured at 5600 (0.27) to 6500 (0.8), cache included; a clip's estimate, 7000, covers it.
CLIP_FRAMES = 5


class ComfyStreamDecoder:
    """A `salt.models.streaming_vae.FrameDecoder` on a ComfyUI VAE: every call continues the clip of the call before.

    The causal cache is this stream's own; core's decoder modules do the work, with core's casts and offloading.
    Raises ValueError for a VAE that is not Wan 2.1's.
    """

    spatial_scale, temporal_scale = 8, 4

    def __init__(self, vae: Any) -> None:
        if not is_wan(vae):
            raise no_wan(vae)
        self.vae = vae
        self.cache: list[Any] | None = None

    def reset(self) -> None:
        self.cache = None

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 16, F, H, W], normalised -> pixels [B, 3, T, 8H, 8W] in [-1, 1]; T is 4F, at the start 4F - 3."""
        from comfy.latent_formats import Wan21

        return torch.cat([self.frame(x) for x in Wan21().process_out(latents).split(1, dim=2)], dim=2) * 2 - 1

    def frame(self, latents: Tensor) -> Tensor:
        """One latent frame [B, 16, 1, H, W], as a LATENT holds it -> its pixel frames [B, 3, T, 8H, 8W] in [0, 1].

        Raises core's InterruptProcessingException when the user has cancelled.
        """
        import comfy.model_management as management

        vae, model = self.vae, self.vae.first_stage_model
        management.throw_exception_if_processing_interrupted()
        batch, channels, _, height, width = latents.shape
        needed = vae.memory_used_decode((1, channels, CLIP_FRAMES, height, width), vae.vae_dtype)
        management.load_models_gpu([vae.patcher], memory_required=batch * needed, force_full_load=vae.disable_offload)
        if self.cache is None:
            self.cache = [None] * sum(1 for _ in model.decoder.modules())
        before = list(self.cache)
        with torch.inference_mode():
            z = model.conv2(latents.to(vae.device, vae.vae_dtype))
            out = model.decoder(z, feat_cache=self.cache, feat_idx=[0])
            pixels = torch.cat(out, dim=2) if isinstance(out, list) else out
            self._keep_two(before)
            return vae.process_output(pixels.to(vae.output_device).float())

    def _keep_two(self, before: list[Any]) -> None:
        """A causal convolution looks back two frames; core, which decodes two at once, keeps only what it was given."""
        assert self.cache is not None
        for i, (old, new) in enumerate(zip(before, self.cache, strict=True)):
            if isinstance(old, Tensor) and isinstance(new, Tensor) and new.shape[2] < 2:
                self.cache[i] = torch.cat([old[:, :, -1:].to(new), new], dim=2)


def is_wan(vae: Any) -> bool:
    model = getattr(vae, "first_stage_model", None)
    return type(model).__name__ == "WanVAE" and type(model).__module__ == "comfy.ldm.wan.vae"


def no_wan(vae: Any) -> ValueError:
    found = type(getattr(vae, "first_stage_model", None)).__name__
    return ValueError(f"vae: found {found}, expected Wan 2.1's VAE (wan_2.1_vae.safetensors in models/vae)")


def check(vae: Any, samples: Tensor) -> None:
    """Raises ValueError for what is no video VAE, and for latents that are not of its kind."""
    if not is_wan(vae) and getattr(vae, "latent_dim", None) != 3:
        raise no_wan(vae)
    if samples.ndim != 5 or samples.shape[1] != vae.latent_channels:
        expected = f"a video latent [B, {vae.latent_channels}, F, H, W] as this VAE takes it"
        raise ValueError(f"latents: found shape {list(samples.shape)}, expected {expected}")


def decode_clip(vae: Any, samples: Tensor) -> Tensor:
    """Whole clips, frame by frame: samples [B, 16, F, H, W] of a LATENT -> images [B * T, 8H, 8W, 3] in [0, 1].

    One clip of a batch after another, so that what the VAE needs grows neither with the clip nor with the batch.
    """
    import comfy.utils

    decoder = ComfyStreamDecoder(vae)
    batch, _, frames, height, width = samples.shape
    # Taken once: frames are written where they stay.
    images = torch.empty(batch, 4 * frames - 3, 8 * height, 8 * width, 3, device=vae.output_device)
    bar = comfy.utils.ProgressBar(batch * frames)
    for clip, kept in zip(samples.split(1), images, strict=True):
        decoder.reset()
        at = 0
        for latent in clip.split(1, dim=2):
            pixels = decoder.frame(latent)[0].permute(1, 2, 3, 0)
            kept[at : at + pixels.shape[0]] = pixels
            at += pixels.shape[0]
            bar.update(1)
    return images.flatten(0, 1)


def as_video(images: Tensor, fps: float) -> Any:
    """A VIDEO of images [T, H, W, 3]; it holds the same tensor, not another."""
    try:
        from comfy_api.latest import InputImpl, Types

        make, parts = InputImpl.VideoFromComponents, Types.VideoComponents
    except ImportError:  # before 0.4
        from comfy_api.input_impl import VideoFromComponents as make
        from comfy_api.util import VideoComponents as parts
    return make(parts(images=images, audio=None, frame_rate=Fraction(fps).limit_denominator(1001)))


class SaltDecode(io.ComfyNode):
    """Latents to frames, flat in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltDecode",
            display_name="Salt Decode (streaming)",
            category="Salt/decode",
            description="Decodes a video latent frame by frame: the same pictures as VAE Decode, but what the VAE "
            "needs does not grow with the clip's length. For other video VAEs (TAEHV) core's own decode is used.",
            search_aliases=["vae decode", "video decode", "long video", "wan vae", "streaming decode"],
            inputs=[
                io.Latent.Input("latents", tooltip="A Wan 2.1 video latent."),
                io.Vae.Input("vae", tooltip="Wan 2.1's VAE, or Salt Tiny's."),
                io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=1.0, tooltip="Of the VIDEO; Wan's is 16."),
            ],
            outputs=[
                io.Image.Output(tooltip="All frames; clips of a batch one after another."),
                io.Video.Output(tooltip="The first clip, for Save Video."),
            ],
        )

    @classmethod
    def execute(cls, latents: dict[str, Any], vae: Any, fps: float) -> io.NodeOutput:
        samples = latents["samples"]
        check(vae, samples)
        if is_wan(vae):
            images = decode_clip(vae, samples)
        else:
            log.info("Salt: %s has no streaming decode here, core's is used", type(vae.first_stage_model).__name__)
            images = vae.decode(samples)
            images = images.flatten(0, 1) if images.ndim == 5 else images
        return io.NodeOutput(images, as_video(images[: images.shape[0] // samples.shape[0]], fps))


NODES = [SaltDecode]
