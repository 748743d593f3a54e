"""The size in pixels that a MODEL was trained for, which width and height of 0 stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from .clip_size import pixel_size
from .comfy_model import pixels_per_latent
from .core_versions import file_of
from .student_spec import known_spec

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

OPTION = "salt_size"  # in model_options, where LoRA loaders and clones keep it
WAN_SIZES = {8: (832, 480), 16: (1280, 704)}  # of the released students, by pixels in a latent: Wan 2.1 and 2.2

# What the files say from which other loaders have read their MODELs. Read once: a file may be replaced later.
_of_files: WeakKeyDictionary[BaseModel, tuple[int, int] | None] = WeakKeyDictionary()


def set_size(model: ModelPatcher, size: tuple[int, int]) -> None:
    """Keep (height, width) that the MODEL was trained for on it."""
    model.model_options[OPTION] = (size[1], size[0])


def known_size(model: ModelPatcher) -> tuple[int, int] | None:
    """Width and height that the MODEL was trained for, as its file or folder says; None where neither does."""
    if (size := model.model_options.get(OPTION)) is not None:
        return size
    if model.model not in _of_files:
        from ...salt.checkpoints.trained_size import read_size

        path = file_of(model)
        found = None if path is None else read_size(path)
        _of_files[model.model] = None if found is None else (found[1], found[0])
    return _of_files[model.model]


def own_size(model: ModelPatcher) -> tuple[int, int]:
    """Width and height that the MODEL was trained for, by default the released students'."""
    return known_size(model) or WAN_SIZES[pixels_per_latent(model)]


def chosen_size(model: ModelPatcher, width: int, height: int) -> tuple[int, int]:
    """Width and height as the widgets say; 0 is the MODEL's own."""
    own = own_size(model)
    return width or own[0], height or own[1]


def size_notes(model: ModelPatcher, size: tuple[int, int]) -> list[str]:
    """What a report says of a latent (height, width) that the MODEL was not trained for.

    Nothing for a MODEL of which nothing is known: the report says that instead.
    """
    own, found = own_size(model), pixel_size(size, pixels_per_latent(model))
    if found == own or (known_size(model) is None and known_spec(model) is None):
        return []
    return [f"the MODEL was not trained for {found[0]}x{found[1]} pixels but for {own[0]}x{own[1]}"]
