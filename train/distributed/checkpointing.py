"""Checkpoints of a run, written atomically, so that a killed run resumes from the newest complete one.

A checkpoint is a folder `step-NNNNNNNN` with one file per kind of state and, written last, `complete.json` with their
sizes. It is written under a hidden name, flushed to disk, and renamed. Unsharded tensors are stored, so a run may
resume on another number of processes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from salt.io.atomic import atomic_folder

COMPLETE_FILE = "complete.json"


class CheckpointFolder:
    """The checkpoints of one run. keep: how many complete ones are kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, update: int, parts: dict[str, Any]) -> Path:
        """Write one checkpoint (call it in one process) and remove all but the newest `keep`."""
        final = self.folder / f"step-{update:08d}"
        with atomic_folder(final) as partial:
            sizes = {}
            for name, value in parts.items():
                path = partial / f"{name}.pt"
                torch.save(value, path)
                sizes[path.name] = path.stat().st_size
            (partial / COMPLETE_FILE).write_text(json.dumps({"update": update, "files": sizes}))
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return [p for p in sorted(self.folder.glob("step-*")) if _is_complete(p)]

    def updates(self) -> int:
        """Finished updates in the newest complete checkpoint, 0 where there is none."""
        complete = self.complete()
        return int(complete[-1].name.rpartition("-")[2]) if complete else 0

    def latest(self) -> dict[str, Any] | None:
        """The parts of the newest complete checkpoint, or None where there is none.

        Files are memory-mapped, so that the processes of a machine do not each hold all tensors. A write to a tensor
        is private to the process, and a file removed meanwhile stays readable.
        """
        complete = self.complete()
        if not complete:
            return None
        paths = [complete[-1] / name for name in json.loads((complete[-1] / COMPLETE_FILE).read_text())["files"]]
        return {path.stem: torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths}


def _is_complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / COMPLETE_FILE).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())
