"""Folders of models for transformers and diffusers, checked before those libraries read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError, safe_open

from .fields import Between, FieldError, read_object, read_value, shown
from .remote_names import local_path

CODE_KEYS = ("auto_map", "custom_pipelines")  # of configurations that name Python files to run
NUMBERS, COUNTS = Between(-(10**7), 10**7), Between(1, 10**7)
MOST_PARTS = Between(1, 1000)  # layers and blocks, each of which is built
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class ModelFolderError(ValueError):
    """A folder that is not read: the message names the file in it, what was found and what is expected."""

    __module__ = "salt.io.model_folders"


def check_model_folder(folder: Path) -> None:
    """Raise ModelFolderError for a model's folder, or one of its components', that names code or holds pickles only.

    Also for configurations that are no JSON objects, and indexes of files elsewhere.
    """
    for part in (folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())):
        for path in _descriptions(part):
            try:
                values = read_object(path)
                named = values["weight_map"] if path.name.endswith(".index.json") else {}
                for name in named.values() if isinstance(named, dict) else [named]:
                    local_path(part, name)
            except (KeyError, FieldError, OSError) as error:
                raise ModelFolderError(f"{path}: {error}") from None
            except ValueError as error:
                raise ModelFolderError(f"{path}: weight_map: {error}") from None
            if code := [key for key in CODE_KEYS if values.get(key)]:
                found = f"{code[0]} {shown(values[code[0]])}"
                raise ModelFolderError(f"{path}: found {found}, which names Python code; code of models is never run")
        _check_weights(part)


def check_config(path: Path, defaults: Mapping[str, object]) -> None:
    """Raise ModelFolderError for a value in a config.json of another type than its default, or an absurd number.

    defaults: of the class that it configures, by key; a key without one, or with None, may have any value.
    """
    try:
        values = read_object(path) if path.is_file() else {}
        for key, default in defaults.items():
            if values.get(key) is not None and default is not None:
                _check_like(values[key], default, key)
    except (FieldError, OSError) as error:
        raise ModelFolderError(f"{path}: {error}") from None


def _check_like(value: object, default: object, name: str) -> None:
    """Raise FieldError for a value unlike its default; what is neither number, text nor list is not looked at."""
    if isinstance(default, (bool, str)):
        read_value(type(default), value, name)
    elif isinstance(default, int):
        limits = NUMBERS if default < 1 else MOST_PARTS if name.endswith(("layers", "blocks")) else COUNTS
        read_value(Annotated[int, limits], value, name)
    elif isinstance(default, float):
        read_value(Annotated[float, NUMBERS], value, name)
    elif isinstance(default, (list, tuple)) and default:
        items = read_value(list[Any], value, name)
        if not items or (isinstance(default, tuple) and len(items) != len(default)):
            raise FieldError(f"{name}: found {shown(value)}, expected values such as {shown(list(default))}")
        for i, item in enumerate(items):
            _check_like(item, default[0], f"{name}[{i}]")


def _descriptions(folder: Path) -> Iterator[Path]:
    for pattern in ("*config.json", "model_index.json", "*.index.json"):
        yield from sorted(folder.glob(pattern))


def _check_weights(folder: Path) -> None:
    """Raise ModelFolderError for damaged safetensors files, and where a component's weights are pickles only.

    `salt.checkpoints` reads a transformer's.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"{path}: is damaged or cut short: {error}") from None
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles and (folder / "config.json").is_file() and folder.name != "transformer":
        if not any(folder.glob("*.safetensors")):
            raise ModelFolderError(f"{pickles[0]}: found a pickle, expected weights in safetensors files")
