"""Sizes and lengths of clips between the nodes' units, pixels and frames, and those of latents, and their checks."""

from __future__ import annotations

from torch import Tensor

from ...salt.io.pixel_sizes import check_multiple
from ...salt.spec import FPS, WAN22_FPS

# By latent channels, of Wan 2.1's VAE and students, and of Wan 2.2 TI2V's.
PIXELS_PER_LATENT = {16: 8, 48: 16}  # rows and columns
USUAL_FPS = {16: FPS, 48: WAN22_FPS}
FRAMES_PER_LATENT = 4  # after the first latent frame, which is a single frame
PATCH = 2  # rows and columns of latents in a patch of Wan's transformer


def latent_size(width: int, height: int, per_latent: int) -> tuple[int, int]:
    """Latent (height, width) for pixels, of which a latent has `per_latent` rows and columns.

    Raises InputError naming the widget of a size that is no multiple of a patch.
    """
    for name, pixels in (("width", width), ("height", height)):
        check_multiple(name, pixels, PATCH * per_latent)
    return height // per_latent, width // per_latent


def pixel_size(size: tuple[int, int], per_latent: int) -> tuple[int, int]:
    """Pixels (width, height) of a latent (height, width)."""
    return size[1] * per_latent, size[0] * per_latent


def check_latent_size(socket: str, latents: Tensor, per_latent: int) -> None:
    """Raise InputError naming the socket of latents [B, C, F, H, W] whose width or height fills no whole patches."""
    height, width = latents.shape[3:]
    for side, size in (("width", width), ("height", height)):
        check_multiple(socket, size * per_latent, PATCH * per_latent, f"a {side} of ")


def frame_count(latent_frames: int) -> int:
    """Frames of a clip of so many latent frames, from its start."""
    return max(FRAMES_PER_LATENT * (latent_frames - 1) + 1, 0)


def length_text(latent_frames: int, fps: int) -> str:
    """The length of a clip of so many latent frames at `fps` frames a second, as `33 frames (2.06 s)`."""
    frames = frame_count(latent_frames)
    return f"{frames} frame{'s' * (frames != 1)} ({round(frames / fps, 2):g} s)"


def start_text(latent_frame: int, fps: int) -> str:
    """Second of the clip at which a latent frame begins, as `2.06`."""
    return f"{round(frame_count(latent_frame) / fps, 2):g}"


def size_text(height: int, width: int, per_latent: int) -> str:
    """A latent size in pixels, as `832x480`."""
    return f"{width * per_latent}x{height * per_latent}"
