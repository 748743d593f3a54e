"""The size in pixels that a MODEL was trained for, which width and height of 0 stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .clip_size import pixel_size
from .comfy_model import pixels_per_latent
from .student_spec import known_spec

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

OPTION = "salt_size"  # in model_options, where LoRA loaders and clones keep it
WAN_SIZES = {8: (832, 480), 16: (1280, 704)}  # of the released students, by pixels in a latent: Wan 2.1 and 2.2


def size_in_folder(path: Path) -> tuple[int, int] | None:
    """Width and height that a diffusers folder, or the one around a `transformer` folder, states in its
    model_index.json; None where there is none. Raises ValueError, naming the file, for a wrong value."""
    folder = path.parent if path.name == "transformer" else path
    if not (folder / "model_index.json").is_file():
        return None
    from ...salt.pipeline.components import read_index

    size = read_index(folder).get("default_size")
    return None if size is None else (size[1], size[0])


def own_size(model: ModelPatcher) -> tuple[int, int]:
    """Width and height that the MODEL was trained for: those of its folder, else the released students'."""
    return model.model_options.get(OPTION) or WAN_SIZES[pixels_per_latent(model)]


def chosen_size(model: ModelPatcher, width: int, height: int) -> tuple[int, int]:
    """Width and height as the widgets say; 0 is the MODEL's own."""
    own = own_size(model)
    return width or own[0], height or own[1]


def size_notes(model: ModelPatcher, size: tuple[int, int]) -> list[str]:
    """What a report says of a latent (height, width) that the MODEL was not trained for.

    Nothing for a MODEL of which nothing is known: the report says that instead.
    """
    own, found = own_size(model), pixel_size(size, pixels_per_latent(model))
    if found == own or (OPTION not in model.model_options and known_spec(model) is None):
        return []
    return [f"the MODEL was not trained for {found[0]}x{found[1]} pixels but for {own[0]}x{own[1]}"]
