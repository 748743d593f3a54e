"""Complete checkpoints of a run: written whole or not at all, the newest good one found again after any kill.

A checkpoint is a folder `step-NNNNNNNN` with one file per kind of state and, last of all, `complete.json` that lists
their sizes. It is written under a hidden name, flushed to disk, and renamed. Whole (unsharded) tensors are stored, so a
run may resume on another number of processes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from salt.io.atomic import atomic_folder

MARK = "complete.json"


class CheckpointFolder:
    """The checkpoints of one run. keep: how many complete ones stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, update: int, parts: dict[str, Any]) -> Path:
        """Write one checkpoint (call it in one process) and drop what is older than `keep`."""
        final = self.folder / f"step-{update:08d}"
        with atomic_folder(final) as partial:
            sizes = {}
            for name, value in parts.items():
                path = partial / f"{name}.pt"
                torch.save(value, path)
                sizes[path.name] = path.stat().st_size
            (partial / MARK).write_text(json.dumps({"update": update, "files": sizes}))
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return [p for p in sorted(self.folder.glob("step-*")) if _is_complete(p)]

    def latest(self) -> dict[str, Any] | None:
        """The parts of the newest complete checkpoint, or None where there is none.

        Tensors stay in their files until they are read, so that the processes of a machine do not each hold them all;
        what is written into one is the process's own, and a file that is removed meanwhile is there until it lets go.
        """
        complete = self.complete()
        if not complete:
            return None
        paths = [complete[-1] / name for name in json.loads((complete[-1] / MARK).read_text())["files"]]
        return {path.stem: torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths}


def _is_complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / MARK).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())
