"""Sizes and lengths of clips between the nodes' units, pixels and frames, and those of latents, and their checks."""

from __future__ import annotations

from torch import Tensor

from ...salt.errors import InputError
from ...salt.spec import FPS

PIXELS_PER_LATENT = 8  # rows and columns
FRAMES_PER_LATENT = 4  # after the first latent frame, which is a single frame
MULTIPLE = 16  # of pixels: Wan's VAE has 8 to a latent, its transformer 2 latents to a patch


def latent_size(width: int, height: int) -> tuple[int, int]:
    """Latent (height, width) for pixels. Raises InputError naming the widget of a size that is no multiple of 16."""
    for name, pixels in (("width", width), ("height", height)):
        check_multiple(name, pixels, MULTIPLE)
    return height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def pixel_size(size: tuple[int, int]) -> tuple[int, int]:
    """Pixels (width, height) of a latent (height, width)."""
    return size[1] * PIXELS_PER_LATENT, size[0] * PIXELS_PER_LATENT


def check_latent_size(socket: str, latents: Tensor) -> None:
    """Raise InputError naming the socket of latents [B, C, F, H, W] whose width or height is no multiple of 16."""
    height, width = latents.shape[3:]
    for side, size in (("width", width), ("height", height)):
        check_multiple(socket, size * PIXELS_PER_LATENT, MULTIPLE, f"a {side} of ")


def check_multiple(field: str, pixels: int, multiple: int, side: str = "") -> None:
    """Raise InputError naming `field` and the nearest sizes unless `pixels` is a multiple, above 0."""
    below = pixels // multiple * multiple
    if pixels != below or not pixels:
        near = " or ".join(str(size) for size in (below, below + multiple) if size)
        raise InputError(field, f"found {side}{pixels} pixels, expected a multiple of {multiple} ({near})")


def frame_count(latent_frames: int) -> int:
    """Frames of a clip of so many latent frames, from its start."""
    return max(FRAMES_PER_LATENT * (latent_frames - 1) + 1, 0)


def length_text(latent_frames: int) -> str:
    """The length of a clip of so many latent frames, as `33 frames (2.06 s)`."""
    frames = frame_count(latent_frames)
    return f"{frames} frame{'s' * (frames != 1)} ({round(frames / FPS, 2):g} s)"


def size_text(height: int, width: int) -> str:
    """A latent size in pixels, as `832x480`."""
    return f"{width * PIXELS_PER_LATENT}x{height * PIXELS_PER_LATENT}"
