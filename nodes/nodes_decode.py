"""*Salt Decode (streaming)*: ComfyUI's own Wan VAE, frame by frame, so that memory does not grow with the clip."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..salt.errors import InputError
from ..salt.spec import FPS
from .adapter.clip_size import USUAL_FPS
from .adapter.core_versions import as_video, schema
from .adapter.streaming_vae import check_video_latents, decode_clips, is_wan_vae
from .io_types import Latent

if TYPE_CHECKING:
    from comfy.sd import VAE

log = logging.getLogger(__name__)


class SaltDecode(io.ComfyNode):
    """Latents to frames, flat in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltDecode",
            display_name="Salt Decode (streaming)",
            category="Salt/decode",
            description="Decodes a video latent frame by frame: the same pictures as VAE Decode, but the memory that "
            "the VAE needs does not grow with the clip's length. For other video VAEs (TAEHV) core's own decode is "
            "used.",
            search_aliases=["vae decode", "video decode", "long video", "wan vae", "streaming decode"],
            inputs=[
                io.Latent.Input("latents", tooltip="A video latent of Wan 2.1, or of Wan 2.2 TI2V."),
                io.Vae.Input("vae", tooltip="The MODEL's: Wan 2.1's VAE, Wan 2.2's for TI2V, or Salt Tiny's."),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Of the VIDEO; 0: the student's own (Wan 2.1: 16, Wan 2.2 TI2V and LongLive 2.0: 24).",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="All frames; clips of a batch one after another."),
                io.Video.Output(tooltip="The first clip, for Save Video."),
            ],
        )

    @classmethod
    def execute(cls, latents: Latent, vae: VAE, fps: float) -> io.NodeOutput:
        if 0 < fps < 1:
            raise InputError("fps", f"found {fps:g}, expected 0, or 1 to 120")
        samples = latents["samples"]
        check_video_latents(vae, samples)
        if is_wan_vae(vae):
            images = decode_clips(vae, samples)
        else:
            kind = type(vae.first_stage_model).__name__
            log.info("Salt: %s has no streaming decoder here, ComfyUI's own decode is used", kind)
            images = vae.decode(samples)
            images = images.flatten(0, 1) if images.ndim == 5 else images
        rate = fps or latents.get("salt_fps") or USUAL_FPS.get(samples.shape[1], FPS)
        return io.NodeOutput(images, as_video(images[: images.shape[0] // samples.shape[0]], rate))


NODES = [SaltDecode]
