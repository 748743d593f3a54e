"""Pictures as pixels: 8 or 16 bits a channel, turned as their EXIF data say.

Layout: pixels [1, 3, 1, H, W], float in [-1, 1].
"""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .atomic import require_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_IMAGE_PIXELS = 100_000_000  # four bytes of a bomb can claim any size, and a picture is decoded whole
# What Pillow raises for damaged files.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError)


def open_image(path: str | Path) -> Tensor:
    """Pixels of an image file; of an animation, the first picture.

    Raises OSError if there is no such file; ValueError, naming it, if it is not an image that can be used.
    """
    path = require_file(path, "an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
            with Image.open(path) as picture:
                return image_pixels(picture)
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def image_pixels(picture: Image.Image) -> Tensor:
    """Pixels of a PIL image. Raises ValueError for one that is too large or has neither 8 nor 16 bits a channel."""
    width, height = picture.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"found {width}x{height} pixels, expected at most {MAX_IMAGE_PIXELS // 10**6} million; make it smaller"
        )
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format in ("PNG", "PPM")):
        grey_HW = torch.from_numpy(np.asarray(upright).astype(np.float32)) / 32767.5 - 1
        return grey_HW.expand(1, 3, 1, upright.height, upright.width).contiguous()
    if upright.mode in ("I", "F"):
        raise ValueError(f"found 32 bits a pixel (mode {upright.mode}), expected 8 or 16 bits a channel")
    return uint8_pixels(np.asarray(upright.convert("RGB"))[None])


def uint8_pixels(pictures_THW3: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] -> float pixels [1, 3, T, H, W] in [-1, 1]."""
    return (torch.from_numpy(pictures_THW3.copy()).float() / 127.5 - 1).permute(3, 0, 1, 2)[None]
