"""Memory files in ComfyUI's output and input folders: listing, finding and loading them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...salt.memory import KVMemory, MemoryFileError, load_memory
from ...salt.memory.serialization import NEGATIVE_SUFFIX, load_negative, save_clip
from ..io_types import ClipMemory
from .comfy_model import memory_geometry
from .fingerprint import fingerprint

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

FOLDER = "salt_memories"


def memory_files() -> list[str]:
    """Saved memories in output/ and input/, as `salt_memories/NAME.safetensors [output]`, newest first."""
    import folder_paths

    found = []
    for kind, root in (("output", folder_paths.get_output_directory()), ("input", folder_paths.get_input_directory())):
        for path in Path(root, FOLDER).rglob("*.safetensors"):
            hidden = path.stem.endswith(NEGATIVE_SUFFIX) or path.name.startswith(".")
            if not hidden and path.is_file():  # no link to a disk that is not mounted
                found.append((path.stat().st_mtime, f"{path.relative_to(root).as_posix()} [{kind}]"))
    return [name for _, name in sorted(found, reverse=True)]


def memory_path(name: str) -> Path:
    """The path of `NAME [output]`. Raises FileNotFoundError naming the folder it is looked for in."""
    import folder_paths

    path = Path(folder_paths.get_annotated_filepath(name))
    if not path.is_file():
        raise FileNotFoundError(f"{name}: found no such file, expected a memory saved by Save Memory in {path.parent}")
    return path


def save_clip_memory(clip: ClipMemory, filename_prefix: str) -> Path:
    """Write a memory under the next free number below the output folder; the path of the file."""
    import folder_paths

    folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory())
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    save_clip(path, clip.memory, clip.negative)
    return path


def load_clip_memory(path: Path, model: ModelPatcher | None) -> ClipMemory:
    """The memory of a file with its unconditional branch; with a MODEL, only one written by that MODEL.

    Raises MemoryFileError naming the file.
    """
    identity = None if model is None else fingerprint(model)
    clip = ClipMemory(load_memory(path, fingerprint=identity), load_negative(path, fingerprint=identity))
    if model is not None:
        for memory in clip.branches:
            check_geometry(memory, path, model)
    return clip


def check_geometry(memory: KVMemory, path: Path, model: ModelPatcher) -> None:
    """Equal weights may be read as other heads: their number is not in the shapes. Raises MemoryFileError."""
    found = memory.geometry
    expected = memory_geometry(model, found.batch, found.height * 2, found.width * 2)
    if found != expected:
        in_file, of_model = (f"{g.layers} layers, {g.heads} heads of {g.head_dim}" for g in (found, expected))
        raise MemoryFileError(f"{path}: found a memory of {in_file}, expected the model's {of_model}")
