"""Host 1: what is seen while a rollout runs: progress per model call, and the clip so far as a small animation.

Previews go through core's own progress bar, so they appear on the node in every version. Core sends a picture by
calling its `save`; a picture whose `save` writes an animated PNG is an animation in the browser, with no script.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...salt.rollout import Block, Step

log = logging.getLogger(__name__)
SIDE = 256  # longest side of a preview, in pixels
FRAMES = 96  # newest frames that it shows
GIVEN = 30  # latent frames of an earlier clip that are decoded for it: more than it shows, as decoders look back
PIXEL_FPS, LATENT_FPS = 16, 4
TAEHV_NAMES = ("taew2_1", "lighttaew2_1")


class Animation:
    """The last frames of parts [T, 3, H, W] in [0, 1] as what core takes for a picture.

    It is put together when core saves it, which is another thread's work, not the rollout's.
    """

    def __init__(self, parts: Sequence[Tensor], fps: float) -> None:
        self.parts, self.fps = tuple(parts), fps

    def save(self, file: Any, format: str = "PNG", **_: Any) -> None:
        from PIL import Image

        frames = torch.cat([sized(part, enlarged=True) for part in self.parts])[-FRAMES:]
        pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        first, *others = [Image.fromarray(frame) for frame in pixels]
        first.save(file, "PNG", save_all=True, append_images=others, duration=round(1000 / self.fps), loop=0)


class LatentColours:
    """Latent-to-RGB with core's factors of the model's latent format: one small picture per latent frame."""

    fps = LATENT_FPS

    def __init__(self, latent_format: Any) -> None:
        self.factors = torch.tensor(latent_format.latent_rgb_factors)
        bias = latent_format.latent_rgb_factors_bias
        self.bias = torch.zeros(3) if bias is None else torch.tensor(bias)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [F, 3, H, W] in [0, 1], of the first clip of the batch."""
        x = latents[0].float().cpu().permute(1, 2, 3, 0) @ self.factors + self.bias
        return ((x + 1) / 2).clamp(0, 1).permute(0, 3, 1, 2)


class Stream:
    """A `salt.models.streaming_vae.FrameDecoder` for previews: the first clip of the batch, made small."""

    fps = PIXEL_FPS

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        decoder.reset()

    def decode(self, latents: Tensor) -> Tensor:
        return (self.decoder.decode(latents[:1])[0].float().cpu().transpose(0, 1) + 1) / 2


class VaeStream(Stream):
    """The same by a VAE, which core loads for every block and may have made room for by sending the MODEL away."""

    def __init__(self, vae: Any, model: Any, frames: int) -> None:
        from ..nodes_decode import ComfyStreamDecoder

        super().__init__(ComfyStreamDecoder(vae))
        self.model, self.frames = model, frames

    def decode(self, latents: Tensor) -> Tensor:
        from comfy.model_management import load_models_gpu

        pixels = super().decode(latents)
        room = self.model.model.memory_required([*latents.shape[:2], self.frames, *latents.shape[3:]])
        load_models_gpu([self.model], memory_required=room)
        return pixels


def preview_decoder(model: Any, vae: Any = None, frames: int = 0) -> LatentColours | Stream:
    """The best there is: the VAE that was given, TAEHV from models/vae_approx, else latent colours.

    frames: latent frames in the MODEL's largest forward, which it needs room for when a VAE has had its turn.

    Core's preview method is honoured where it is latent2rgb; its default, no previews, is meant for steps of an image,
    while a rollout shows finished video.
    """
    from comfy.cli_args import LatentPreviewMethod, args

    if vae is not None:
        return VaeStream(vae, model, frames)
    if args.preview_method != LatentPreviewMethod.Latent2RGB and (path := taehv_file()):
        from ...salt.models.taehv import TinyStreamDecoder, load_taehv

        try:
            return Stream(TinyStreamDecoder(load_taehv(path, model.load_device)))
        except ValueError as error:
            log.warning("Salt: previews go without TAEHV (%s)", error)
    return LatentColours(model.model.latent_format)


def taehv_file() -> str | None:
    """Path of a tiny Wan 2.1 decoder in models/vae_approx, if there is one."""
    import folder_paths

    for name in folder_paths.get_filename_list("vae_approx"):
        if name.startswith(TAEHV_NAMES):
            return folder_paths.get_full_path("vae_approx", name)
    return None


def sized(frames: Tensor, enlarged: bool) -> Tensor:
    """Frames [T, 3, H, W] with the longest side at SIDE pixels: larger ones shrunk, small ones `enlarged` if asked."""
    height, width = frames.shape[2:]
    scale = SIDE / max(height, width)
    if scale == 1 or (scale > 1 and not enlarged):
        return frames
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return torch.nn.functional.interpolate(frames, size, mode="nearest" if scale > 1 else "area")


class RolloutProgress:
    """Progress and previews of one rollout. `step` before every model call, `block` after every finished block."""

    def __init__(self, calls: int, decoder: LatentColours | Stream, given: Sequence[Tensor] = ()) -> None:
        import comfy.utils

        self.bar = comfy.utils.ProgressBar(calls)
        self.calls, self.decoder = calls, decoder
        self.made = 0
        self.began = time.perf_counter()
        self.first: float | None = None
        self.pixel_frames = 0
        self.shown: list[Tensor] = []
        self.watched = comfy.utils.PROGRESS_BAR_HOOK is not None
        for latents in given:
            self._show(latents[:, :, -GIVEN:])

    def step(self, step: Step) -> None:
        """Raises core's InterruptProcessingException when the user has cancelled."""
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(min(self.made, self.calls - 1), self.calls)
        self.made += 1

    def block(self, block: Block) -> None:
        now = time.perf_counter()
        self.first = self.first or now - self.began
        self.pixel_frames += 4 * (block.stop - block.start) - (3 if block.start == 0 else 0)
        self._show(block.latents)
        picture = ("PNG", Animation(self.shown, self.decoder.fps), None) if self.watched else None
        self.bar.update_absolute(min(self.made, self.calls), self.calls, picture)

    def _show(self, latents: Tensor) -> None:
        """Add pictures of these latents to the ones shown, if core shows pictures to anyone."""
        if not self.watched:
            return
        self.shown.append(sized(self.decoder.decode(latents), enlarged=False))
        while sum(part.shape[0] for part in self.shown[1:]) >= FRAMES:
            self.shown.pop(0)

    def done(self) -> str:
        """Fill the bar; frames, time to the first block, frames per second."""
        self.bar.update_absolute(self.calls, self.calls)
        seconds = time.perf_counter() - self.began
        rate = self.pixel_frames / seconds if seconds else 0.0
        return f"{self.pixel_frames} frames, first after {self.first or 0:.2f} s, {rate:.1f} frames per second"
