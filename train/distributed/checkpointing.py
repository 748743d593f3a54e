"""Checkpoints of a run, written atomically, so that a killed run resumes from the newest complete one.

A checkpoint is a folder `step-NNNNNNNN` with one file per kind of state and, written last, `complete.json` with their
sizes. It is written under a hidden name, flushed to disk, and renamed. A damaged one is named and set aside, and the
run goes on from the one before. Unsharded tensors are stored, so a run may resume on another number of processes.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from salt.io.atomic import PARTIAL_FOLDER, atomic_folder
from salt.io.fields import Index, read_object, read_value
from salt.io.partial_files import new_partial, remove_leftovers
from salt.io.remote_names import local_path

COMPLETE_FILE = "complete.json"
DAMAGED_PREFIX = "damaged-"


class CheckpointFolder:
    """The checkpoints of one run. keep: how many complete ones are kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, update: int, parts: dict[str, Any]) -> Path:
        """Write one checkpoint (call it in one process) and remove all but the newest `keep`.

        Raises OSError, naming the folder, where the system refuses (a full disk); the checkpoints before stay.
        """
        final = self.folder / f"step-{update:08d}"
        with atomic_folder(final) as partial:
            sizes = {}
            for name, value in parts.items():
                path = partial / f"{name}.pt"
                self._write(value, path, final)
                sizes[path.name] = path.stat().st_size
            (partial / COMPLETE_FILE).write_text(json.dumps({"update": update, "files": sizes}))
        for old in self.complete()[: -self.keep]:
            # Hidden first: a run that is killed here leaves no half of a checkpoint, and the next one removes the rest.
            shutil.rmtree(old.rename(new_partial(old, PARTIAL_FOLDER)))
        return final

    def _write(self, value: object, path: Path, final: Path) -> None:
        try:
            torch.save(value, path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError where a write fails
            free, reason = shutil.disk_usage(path.parent).free / 1e9, " ".join(str(error).split())[:120]
            kept = [folder.name for folder in self.complete()[-1:]] or ["none yet"]
            raise OSError(
                f"{final}: cannot be written ({reason}); {free:.1f} GB are free. Checkpoint before it: {kept[0]}, from "
                "which the same command goes on"
            ) from error

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return [p for p in sorted(self.folder.glob("step-*")) if _is_complete(p)]

    def updates(self) -> int:
        """Finished updates in the newest complete checkpoint, 0 where there is none."""
        complete = self.complete()
        return int(complete[-1].name.rpartition("-")[2]) if complete else 0

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are whole, to the bit; None without one. Call it in one process.

        A damaged one is named on stderr and renamed to `damaged-step-NNNNNNNN`, so that it is not counted among those
        that are kept.
        """
        for name in {path.name[1:].partition(".")[0] for path in self.folder.glob(".step-*")}:
            remove_leftovers(self.folder / name, PARTIAL_FOLDER)
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            damage = _damage(folder)
            if damage is None:
                return folder
            aside = folder.with_name(DAMAGED_PREFIX + folder.name)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{folder}: is damaged ({damage}); it is now {aside.name}, and not used", file=sys.stderr)
        return None

    def latest(self) -> dict[str, Any] | None:
        """The parts of the newest whole checkpoint, or None where there is none. Call it in one process."""
        newest = self.newest()
        return None if newest is None else load_checkpoint(newest)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The parts of a checkpoint.

    Files are memory-mapped, so that the processes of a machine do not each hold all tensors. A write to a tensor is
    private to the process, and a file removed meanwhile stays readable.
    """
    paths = [folder / name for name in _file_sizes(folder)]
    return {path.stem: torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths}


def _file_sizes(folder: Path) -> dict[str, int]:
    """Names and sizes of a checkpoint's files. Raises OSError or ValueError where they are not known."""
    found = read_object(folder / COMPLETE_FILE)
    sizes = read_value(dict[str, Index], found.get("files"), "files")
    for name in sizes:
        local_path(folder, name)
    return sizes


def _is_complete(folder: Path) -> bool:
    return _incomplete(folder) is None


def _incomplete(folder: Path) -> str | None:
    """What of a checkpoint is missing, or of another size than was written; None where nothing is."""
    try:
        sizes = _file_sizes(folder)
    except (OSError, ValueError) as error:
        return f"{COMPLETE_FILE}: {error}"
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name}: found {'no such file' if found is None else f'{found} bytes'}, expected {size}"
    return None


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its sizes and by the checksums in its files; None for a whole one."""
    if incomplete := _incomplete(folder):
        return incomplete
    for name in _file_sizes(folder):
        try:
            with zipfile.ZipFile(folder / name) as file:
                bad = file.testzip()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            return f"{name}: {error}"
        if bad is not None:
            return f"{name}: its checksum of {bad} differs"
    return None
