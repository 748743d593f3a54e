"""Progress and previews of a rollout: the bar, moved at every model call, and the clip so far as a small animation.

Previews go through ComfyUI's own progress bar, so they appear on the node in every version. ComfyUI sends a picture by
calling its `save`; a picture whose `save` writes an animated PNG is an animation in the browser, without any script.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...salt.rollout import Block, Step
from .clip_size import FRAMES_PER_LATENT, frame_count
from .comfy_model import latent_channels
from .preview_method import preview_method
from .streaming_vae import ComfyStreamDecoder, load_again

if TYPE_CHECKING:
    from comfy.latent_formats import LatentFormat
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from ...salt.models.streaming_vae import FrameDecoder

log = logging.getLogger(__name__)
MAX_SIDE = 256  # longest side of a preview, in pixels
MAX_FRAMES = 96  # newest frames that a preview shows
MAX_EARLIER_LATENTS = 30  # of an earlier clip that are decoded: more than are shown, as decoders look back
TAEHV_NAMES, TAEHV_CHANNELS = ("taew2_1", "lighttaew2_1"), 16


class AnimatedPreview:
    """The last frames of parts [T, 3, H, W] in [0, 1], with the `save` of a PIL image.

    Frames are put together when ComfyUI saves the picture, which is done by another thread than the rollout's.
    """

    def __init__(self, parts: Sequence[Tensor], fps: float) -> None:
        self.parts, self.fps = tuple(parts), fps

    def save(self, file: IO[bytes], format: str = "PNG", **_: object) -> None:
        from PIL import Image

        frames = torch.cat([resized(part, enlarge=True) for part in self.parts])[-MAX_FRAMES:]
        pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        first, *others = [Image.fromarray(frame) for frame in pixels]
        first.save(file, "PNG", save_all=True, append_images=others, duration=round(1000 / self.fps), loop=0)


class PreviewDecoder(Protocol):
    """Latents [B, C, F, H, W] -> frames [T, 3, H', W'] in [0, 1] of the first clip of the batch, at `fps`.

    Every call continues the clip of the call before.
    """

    fps: float

    def decode(self, latents: Tensor) -> Tensor: ...


class LatentColours:
    """Latent-to-RGB with ComfyUI's factors of the model's latent format: one small picture per latent frame.

    fps: frames of the clip per second.
    """

    def __init__(self, latent_format: LatentFormat, fps: int) -> None:
        self.fps = fps / FRAMES_PER_LATENT
        self.factors = torch.tensor(latent_format.latent_rgb_factors)
        bias = latent_format.latent_rgb_factors_bias
        self.bias = torch.zeros(3) if bias is None else torch.tensor(bias)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [F, 3, H, W] in [0, 1], of the first clip of the batch."""
        x = latents[0].float().cpu().permute(1, 2, 3, 0) @ self.factors + self.bias
        return ((x + 1) / 2).clamp(0, 1).permute(0, 3, 1, 2)


class StreamPreview:
    """Previews by a streaming decoder, of the first clip of the batch."""

    def __init__(self, decoder: FrameDecoder, fps: float) -> None:
        self.decoder, self.fps = decoder, fps
        decoder.reset()

    def decode(self, latents: Tensor) -> Tensor:
        return (self.decoder.decode(latents[:1])[0].float().cpu().transpose(0, 1) + 1) / 2


class VaePreview(StreamPreview):
    """Previews by a VAE. ComfyUI loads it for every block, and may unload the MODEL to make room for it.

    frames: latent frames in the MODEL's largest forward, which it needs room for when it is loaded again.
    """

    def __init__(self, vae: VAE, model: ModelPatcher, frames: int, fps: int) -> None:
        super().__init__(ComfyStreamDecoder(vae), fps)
        self.model, self.frames = model, frames

    def decode(self, latents: Tensor) -> Tensor:
        pixels = super().decode(latents)
        load_again(self.model, latents, self.frames)
        return pixels


def preview_decoder(model: ModelPatcher, fps: int, vae: VAE | None = None, frames: int = 0) -> PreviewDecoder | None:
    """The decoder for the user's preview method; None for no previews. fps: frames of the clip per second.

    The best is `vae` if there is one, then TAEHV from models/vae_approx for Wan 2.1's latents, then latent colours.
    frames: latent frames in the MODEL's largest forward (see `VaePreview`).
    """
    method = preview_method()
    if method == "none":
        return None
    if method == "latent2rgb":
        return LatentColours(model.model.latent_format, fps)
    if vae is not None:
        return VaePreview(vae, model, frames, fps)
    if latent_channels(model) == TAEHV_CHANNELS and (path := taehv_file()):
        from ...salt.models.taehv import TinyStreamDecoder, load_taehv

        try:
            return StreamPreview(TinyStreamDecoder(load_taehv(path, model.load_device)), fps)
        except ValueError as error:
            log.warning("Salt: previews are made without TAEHV (%s)", error)
    return LatentColours(model.model.latent_format, fps)


def taehv_file() -> str | None:
    """Path of a tiny Wan 2.1 decoder in models/vae_approx, if there is one."""
    import folder_paths

    for name in folder_paths.get_filename_list("vae_approx"):
        if name.startswith(TAEHV_NAMES):
            return folder_paths.get_full_path("vae_approx", name)
    return None


def resized(frames: Tensor, enlarge: bool) -> Tensor:
    """Frames [T, 3, H, W] with the longest side at MAX_SIDE pixels; smaller ones stay as they are without `enlarge`."""
    height, width = frames.shape[2:]
    scale = MAX_SIDE / max(height, width)
    if scale == 1 or (scale > 1 and not enlarge):
        return frames
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return torch.nn.functional.interpolate(frames, size, mode="nearest" if scale > 1 else "area")


class RolloutProgress:
    """Progress and previews of one rollout. `step` before every model call, `block` after every finished block.

    calls: model calls in all. decoder: None for no previews. earlier: latents that previews show before the new ones.
    """

    def __init__(self, calls: int, decoder: PreviewDecoder | None, earlier: Sequence[Tensor] = ()) -> None:
        import comfy.utils

        self.bar = comfy.utils.ProgressBar(calls)
        self.calls, self.decoder = calls, decoder
        self.calls_done = 0
        self.start = time.perf_counter()
        self.seconds_to_first: float | None = None
        self.pixel_frames = 0
        self.shown: list[Tensor] = []
        if comfy.utils.PROGRESS_BAR_HOOK is None:  # nobody sees them
            self.decoder = None
        for latents in earlier:
            self._show(latents)

    def step(self, step: Step) -> None:
        """Raises ComfyUI's InterruptProcessingException when the user has cancelled."""
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(min(self.calls_done, self.calls - 1), self.calls)
        self.calls_done += 1

    def block(self, block: Block) -> None:
        if self.seconds_to_first is None:
            self.seconds_to_first = time.perf_counter() - self.start
        self.pixel_frames += frame_count(block.stop) - frame_count(block.start)
        self._show(block.latents)
        picture = ("PNG", AnimatedPreview(self.shown, self.decoder.fps), None) if self.decoder is not None else None
        self.bar.update_absolute(min(self.calls_done, self.calls), self.calls, picture)

    def _show(self, latents: Tensor) -> None:
        """Add frames of these latents to the ones shown, if there are previews."""
        if self.decoder is None:
            return
        self.shown.append(resized(self.decoder.decode(latents), enlarge=False))
        while sum(part.shape[0] for part in self.shown[1:]) >= MAX_FRAMES:
            self.shown.pop(0)

    def report(self) -> str:
        """Fill the bar; frames, time to the first block, frames per second."""
        self.bar.update_absolute(self.calls, self.calls)
        seconds = time.perf_counter() - self.start
        rate = self.pixel_frames / seconds if seconds else 0.0
        first = self.seconds_to_first or 0
        return f"{self.pixel_frames} frames, first after {first:.2f} s, {rate:.1f} frames per second"
