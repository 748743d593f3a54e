"""The size in pixels that a student was trained for: in its weight file's metadata or its folder's index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from ..io.fields import Between, FieldError, read_fields, read_object, shown
from .tensor_files import CheckpointError, metadata_json, read_metadata

METADATA = "salt_size"
INDEX = "model_index.json"
Pixels = Annotated[int, Between(1, 2**16)]


@dataclass(frozen=True)
class TrainedSize:
    """The JSON object in a file's metadata."""

    height: Pixels = 0
    width: Pixels = 0

    def __post_init__(self) -> None:
        if not (self.height and self.width):
            raise ValueError(f"found height {self.height} and width {self.width}, expected both")


@dataclass(frozen=True)
class DefaultSize:
    """The key of a model_index.json: height and width."""

    default_size: tuple[Pixels, ...] | None = None

    def __post_init__(self) -> None:
        if self.default_size is not None and len(self.default_size) != 2:
            raise ValueError(f"default_size: found {shown(self.default_size)}, expected height and width")


def size_metadata(size: tuple[int, int] | None) -> dict[str, str]:
    """The metadata of a file whose student was trained for (height, width); {} of None."""
    return {} if size is None else {METADATA: json.dumps(asdict(TrainedSize(*size)))}


def trained_size(path: Path, metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Height and width that a file's metadata states, or the model_index.json of a folder (of the one around a
    `transformer` folder); None where neither does. Raises `CheckpointError`, naming the file, for a wrong value."""
    if METADATA not in metadata:
        return _folder_size(path.parent if path.name == "transformer" else path)
    try:
        size = read_fields(TrainedSize, metadata_json(metadata, METADATA, str(path)), METADATA)
    except FieldError as error:
        raise CheckpointError(f"{path}: its metadata {error}") from error
    return size.height, size.width


def read_size(path: Path) -> tuple[int, int] | None:
    """`trained_size` of a weight file or a folder with a model_index.json, of which nothing else is read."""
    return trained_size(path, read_metadata(path) if path.is_file() else {})


def _folder_size(folder: Path) -> tuple[int, int] | None:
    index = folder / INDEX
    if not index.is_file():
        return None
    try:
        size = read_fields(DefaultSize, read_object(index)).default_size
    except FieldError as error:
        raise CheckpointError(f"{index}: {error}") from error
    return None if size is None else (size[0], size[1])
