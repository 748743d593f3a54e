"""Memory files in ComfyUI's output and input folders: listing, finding, saving and loading them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ...salt.errors import InputError
from ...salt.io.fields import Between, FieldError, read_fields
from ...salt.io.partial_files import remove_leftovers_below
from ...salt.memory import KVMemory, MemoryFileError, load_memory
from ...salt.memory.serialization import NEGATIVE_SUFFIX, load_negative, negative_path, read_clip_parts, save_clip
from ...salt.spec import FPS
from ..io_types import ClipMemory
from ..memory_ui import MemoryBar
from .clip_size import PATCH
from .comfy_model import memory_geometry, pixels_per_token
from .file_prefix import FOLDER, checked_prefix, is_below
from .fingerprint import fingerprint
from .student_spec import fps_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PIXELS = "pixels_per_token"  # beside `fps`, of the clip in a memory file
NEWEST = "newest"  # the choice of Salt Load Memory that is no file's name


def _folders() -> list[tuple[str, Path]]:
    import folder_paths

    return [("output", Path(folder_paths.get_output_directory())), ("input", Path(folder_paths.get_input_directory()))]


def memory_files() -> list[str]:
    """Saved memories in output/ and input/, as `salt_memories/NAME.safetensors [output]`, newest first."""
    found = []
    for kind, root in _folders():
        for path in _listed(root / FOLDER):
            with suppress(FileNotFoundError):  # removed meanwhile, or a link to a disk that is not mounted
                found.append((path.stat().st_mtime_ns, f"{path.relative_to(root).as_posix()} [{kind}]"))
    return [name for _, name in sorted(found, reverse=True)]


def _listed(folder: Path) -> Iterator[Path]:
    """Memory files below a folder. Hidden folders hold what is being written, and what killed runs left."""
    for place, inner, names in os.walk(folder):  # unlike rglob, it passes over folders that are removed meanwhile
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if path.suffix == ".safetensors" and not name.startswith(".") and not path.stem.endswith(NEGATIVE_SUFFIX):
                yield path


def memory_path(name: str) -> Path:
    """The path of `NAME [output]`, or the newest listed file for `newest`.

    Raises FileNotFoundError naming the folder that is looked into, InputError for a name outside it.
    """
    import folder_paths

    if name == NEWEST:
        listed = memory_files()
        if not listed:
            folders = " and ".join(str(root / FOLDER) for _, root in _folders())
            raise FileNotFoundError(f"file {NEWEST}: found no memory in {folders}, expected one of Salt Save Memory")
        name = listed[0]
    try:
        path = Path(folder_paths.get_annotated_filepath(name))
        inside = any(is_below(os.path.realpath(path), os.path.realpath(root)) for _, root in _folders())
    except ValueError:  # newer versions of ComfyUI refuse such a name themselves
        inside = False
    if not inside:
        raise InputError("file", f"found {name[:80]!r}, expected a name in the output or input folder")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: found no such file, expected a memory of Salt Save Memory in {path.parent}")
    return path


def memory_bar(name: str) -> MemoryBar:
    """What the front end draws of a file, from its header. Raises as `memory_path` does, and MemoryFileError."""
    from ...salt.memory import MemoryPolicy, read_memory_info

    path = memory_path(name)
    info, negative = read_memory_info(path), negative_path(path)
    policy = read_fields(MemoryPolicy, info["policy"])
    size = sum(p.stat().st_size for p in (path, negative) if p.is_file())
    held, at, layers = list(info["held"]), info["next_frame"], info["geometry"]["layers"]
    return MemoryBar(str(policy), held, policy.sink, policy.window, at, size, layers)


def check_save_prefix(filename_prefix: str) -> str:
    """The prefix with its dates. Raises InputError unless Salt Load Memory would list a file of that name."""
    import folder_paths

    return checked_prefix(filename_prefix, folder_paths.get_output_directory())


def save_clip_memory(clip: ClipMemory, filename_prefix: str) -> Path:
    """Write a memory under the next free number below the output folder; the path of the file.

    Removes the hidden files that killed runs left in the folder. Raises InputError for a prefix outside the folder that
    Salt Load Memory lists.
    """
    import folder_paths

    prefix, output = check_save_prefix(filename_prefix), folder_paths.get_output_directory()
    g = clip.memory.geometry
    size = (g.width * clip.pixels_per_token, g.height * clip.pixels_per_token)
    folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, output, *size)
    remove_leftovers_below(Path(output, FOLDER))
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    save_clip(path, clip.memory, clip.negative, parts=[{"fps": clip.fps, PIXELS: clip.pixels_per_token}])
    return path


def load_clip_memory(path: Path, model: ModelPatcher | None) -> ClipMemory:
    """The memory of a file with its unconditional branch; with a MODEL, only one written by that MODEL.

    Raises MemoryFileError naming the file.
    """
    identity = None if model is None else fingerprint(model)
    memory, negative = load_memory(path, fingerprint=identity), load_negative(path, fingerprint=identity)
    clip = ClipMemory(memory, negative, *clip_units(path, model))
    if model is not None:
        for branch in clip.branches:
            check_geometry(branch, path, model)
    return clip


def clip_units(path: Path, model: ModelPatcher | None) -> tuple[int, int]:
    """Frames per second, and pixels per token, of the clip in a memory file: the MODEL's, or what the file says."""
    if model is not None:
        return fps_of(model), pixels_per_token(model)
    said = {key: value for part in read_clip_parts(path) for key, value in part.items() if key in ("fps", PIXELS)}
    try:
        units = read_fields(_Units, said)
    except FieldError as error:
        raise MemoryFileError(f"{path}: its parts `salt_clip`: {error}") from None
    return units.fps, units.pixels_per_token


@dataclass(frozen=True)
class _Units:
    """Older files, and those of the command line, do not say the second."""

    fps: Annotated[int, Between(1, 120)] = FPS
    pixels_per_token: Annotated[int, Between(1, 1024)] = 16


def check_geometry(memory: KVMemory, path: Path, model: ModelPatcher) -> None:
    """Equal weights may be read as other heads: their number is not in the shapes. Raises MemoryFileError."""
    found = memory.geometry
    expected = memory_geometry(model, found.batch, found.height * PATCH, found.width * PATCH)
    if found != expected:
        in_file, of_model = (f"{g.layers} layers, {g.heads} heads of {g.head_dim}" for g in (found, expected))
        raise MemoryFileError(f"{path}: found a memory of {in_file}, expected the model's {of_model}")
