"""Videos in ComfyUI's output folder that are written while they are made."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from ...salt.errors import InputError
from ...salt.io.fields import shown
from .file_prefix import check_names, is_below, with_dates


def check_video_prefix(prefix: str) -> str:
    """The prefix with its dates. Raises InputError unless it is a name below the output folder."""
    import folder_paths

    prefix = with_dates(prefix, datetime.now())
    output = os.path.realpath(folder_paths.get_output_directory())
    target = os.path.realpath(os.path.join(output, prefix)) if prefix.isprintable() else output
    if not is_below(target, output) or prefix.endswith(("/", "\\")):
        raise InputError("filename_prefix", f"found {shown(prefix)}, expected a name below the output folder")
    check_names(os.path.relpath(target, output), f"found {shown(prefix)}, expected a name that is not hidden")
    return prefix


def new_video_path(prefix: str, width: int, height: int) -> Path:
    """The next free number of a prefix, below the output folder; sizes in pixels."""
    import folder_paths

    output = folder_paths.get_output_directory()
    folder, name, counter, *_ = folder_paths.get_save_image_path(check_video_prefix(prefix), output, width, height)
    return Path(folder) / f"{name}_{counter:05}_.mp4"


def video_ui(path: Path) -> dict[str, Any]:
    """A node's `ui` that shows a file of the output folder, as core's Save Video does."""
    import folder_paths

    place = path.parent.relative_to(Path(folder_paths.get_output_directory()))
    subfolder = "" if place == Path() else place.as_posix()
    return {"images": [{"filename": path.name, "subfolder": subfolder, "type": "output"}], "animated": (True,)}
