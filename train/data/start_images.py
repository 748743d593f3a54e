"""Precomputed start images: the pictures that clips of image-to-video training begin with.

One `NNNNNN.safetensors` per prompt line, with the prompt in its metadata, as `python -m train precompute` writes them.
For image-to-video students it holds `image` [N, D] and `channels` [4 + C, F, H, W], which go beside the noise; for
text-to-video ones `latent` [C, 1, H, W], the clip's clean first latent frame.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.config.recipe import Recipe, RecipeError

AGAIN = "run `python -m train precompute` again"


class StartImages:
    """The start images of a recipe. lines: its prompts."""

    def __init__(self, recipe: Recipe, device: torch.device, lines: list[str]) -> None:
        if not recipe.data.images:
            raise RecipeError("data.images", "found none, expected precomputed start images (the student is I2V)")
        r = recipe.rollout
        self.folder, self.device, self.lines = Path(recipe.data.images), device, lines
        self.size, self.frames = (r.height, r.width), r.frames

    def __call__(self, lines: list[int]) -> tuple[Tensor, Tensor]:
        """CLIP embeddings [B, N, D] and channels [B, 4 + C, F, H, W] of an image-to-video model."""
        rows = [self._read(line, ("image", "channels"), self.frames) for line in lines]
        image, channels = (torch.stack([row[k].float() for row in rows]).to(self.device) for k in ("image", "channels"))
        return image, channels

    def latents(self, lines: list[int]) -> Tensor:
        """The first latent frames [B, C, 1, H, W] of a text-to-video model's clips."""
        rows = [self._read(line, ("latent",), 1)["latent"].float() for line in lines]
        return torch.stack(rows).to(self.device)

    def _read(self, line: int, names: tuple[str, ...], frames: int) -> dict[str, Tensor]:
        """Tensors of a line's file; the last one has the clip's size."""
        path = start_image_path(self.folder, line)
        if not path.is_file():
            raise RecipeError("data.images", f"found no {path}, expected the start image of prompt line {line}")
        try:
            with safe_open(path, "pt") as file:
                prompt, found = (file.metadata() or {}).get("prompt"), set(file.keys())
                tensors = {name: file.get_tensor(name) for name in names if name in found}
        except SafetensorError as error:
            raise RecipeError("data.images", f"found a damaged file {path} ({error}): {AGAIN}") from error
        if set(tensors) != set(names):
            problem = f"found {path} with {', '.join(sorted(found))}, expected {', '.join(names)} (for this student)"
            raise RecipeError("data.images", f"{problem}: {AGAIN}")
        if prompt != self.lines[line]:
            problem = f"found {path} of the prompt {prompt!r:.60}, expected {self.lines[line]!r:.60}"
            raise RecipeError("data.images", f"{problem}: {AGAIN}")
        shape, size = list(tensors[names[-1]].shape), (frames, *self.size)
        if tuple(shape[1:]) != size:
            raise RecipeError("data.images", f"found {path} of {shape}, expected frames and size {size}: {AGAIN}")
        return tensors


def start_image_path(folder: Path, line: int) -> Path:
    return folder / f"{line:06d}.safetensors"


def start_captions(recipe: Recipe) -> list[str]:
    """The captions of the Shapes world's start images, in order of their numbers."""
    folder = Path(recipe.data.images)
    captions: list[str] = []
    while (path := start_image_path(folder, len(captions))).is_file():
        try:
            with safe_open(path, "pt") as file:
                captions.append((file.metadata() or {})["prompt"])
        except (SafetensorError, KeyError) as error:
            raise RecipeError("data.images", f"found no prompt in the metadata of {path} ({error}): {AGAIN}") from error
    if not captions:
        raise RecipeError("data.images", f"found no {path}, expected start images: {AGAIN}")
    return captions
