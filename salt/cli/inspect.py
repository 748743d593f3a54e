"""Show what a checkpoint or a memory file contains, in one table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.printable import printable
from .option_types import file_path

if TYPE_CHECKING:
    from ..spec import StudentSpec


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=file_path, help="checkpoint file or folder, LoRA, or memory file")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "value", title=printable(arguments.path.name), show_header=False)
    for key, value in describe_file(arguments.path).items():
        table.add_row(printable(key), printable(value))
    Console(markup=False, emoji=False, highlight=False).print(table)


def describe_file(path: Path) -> dict[str, str]:
    """The properties of a file as text. Raises MemoryFileError or CheckpointError."""
    from ..checkpoints import describe
    from ..memory import read_memory_info
    from ..memory.serialization import is_memory_file

    if path.suffix == ".safetensors" and is_memory_file(path):
        return _memory(path, read_memory_info(path))
    return _text(describe(path))


def _memory(path: Path, info: dict[str, Any]) -> dict[str, str]:
    from ..io.fields import read_fields
    from ..memory import MemoryPolicy
    from ..memory.inspect import ranges

    g, held = info["geometry"], info["held"]
    return {
        "format": "Salt memory",
        "policy": str(read_fields(MemoryPolicy, info["policy"])),
        "next latent frame": str(info["next_frame"]),
        "holds": f"{len(held)} latent frames ({ranges(held)})",
        "geometry": f"{g['layers']} layers, {g['heads']} heads of {g['head_dim']}, {g['height']}x{g['width']} tokens",
        "batch": str(g["batch"]),
        "dtype": info["dtype"],
        "sigma of context": f"{info['context_sigma']:g}",
        "model fingerprint": info["fingerprint"] or "none",
        "bytes": f"{path.stat().st_size:,}",
    }


def _spec(spec: StudentSpec) -> str:
    first = f" ({len(spec.first_steps)} in the first block)" if spec.first_steps else ""
    steps = f"{len(spec.steps)} steps{first}, blocks of {spec.frames_per_block}, shift {spec.shift:g}"
    rule = "" if spec.rule == "wan" else f", {spec.rule} steps"
    stepping = "" if spec.stepping == "sde" else f", {spec.stepping}"
    return f"{steps}, memory {spec.policy}{rule}{stepping}, {spec.fps} fps"


def _text(values: dict[str, Any]) -> dict[str, str]:
    from ..spec import StudentSpec

    lines = {}
    for key, value in values.items():
        if key == "spec" and value:
            lines["trained for"] = _spec(StudentSpec.from_dict(value))
        elif key == "size" and value:
            lines["trained size"] = value
        elif isinstance(value, (list, tuple)):
            lines[key] = ", ".join(map(str, value))
        elif value is not None:
            lines[key] = f"{value:,}" if isinstance(value, int) else str(value)
    return lines
