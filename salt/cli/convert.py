"""Write a checkpoint in another layout: Wan keys in one safetensors file (ComfyUI reads it), or a diffusers folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..checkpoints import LoraFile

from ..io.printable import printable
from .paths import file_path

DTYPES = ("float32", "float16", "bfloat16")
NOT_WRITTEN = (".pt", ".pth", ".ckpt", ".bin")  # files that only other tools write; hardly the name of a folder


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=file_path, help="released .pt, safetensors, diffusers or sharded folder")
    command.add_argument("target", type=file_path, help="a name ending in .safetensors, or a folder to be diffusers'")
    command.add_argument("--weights", default="auto", choices=("auto", "ema", "regular", "critic"))
    add_lora_argument(command)
    command.add_argument("--dtype", choices=DTYPES, help="default: as in the source")


def add_lora_argument(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--lora",
        action="append",
        metavar="FILE[:STRENGTH]",
        help="a LoRA to merge in, as style.safetensors:0.8 (default: 1); may be given again",
    )


def loras_of(arguments: argparse.Namespace) -> tuple[LoraFile, ...] | None:
    """The LoRAs of `--lora`; None without the option. Raises InputError for a strength that is 0 or no number."""
    from ..checkpoints import LoraFile

    return tuple(map(LoraFile.parse, arguments.lora)) if arguments.lora else None


def run(arguments: argparse.Namespace) -> None:
    if arguments.target.suffix in NOT_WRITTEN:
        raise ValueError(f"{arguments.target}: expected a name ending in .safetensors, or a folder to be diffusers'")
    both_exist = arguments.target.exists() and arguments.source.exists()
    if both_exist and arguments.target.samefile(arguments.source):
        raise ValueError(f"{arguments.target}: found the source, expected another file or folder")
    import torch

    from ..checkpoints import load_student, read_checkpoint, save_student

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    spec = read_checkpoint(arguments.source, arguments.weights).spec
    model = load_student(arguments.source, weights=arguments.weights, lora=loras_of(arguments))
    save_student(model, arguments.target, spec=spec, dtype=dtype)
    print(f"written: {printable(arguments.target)}")
