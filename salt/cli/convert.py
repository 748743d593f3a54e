"""Write a checkpoint in another layout: Wan keys in one safetensors file (ComfyUI reads it), or a diffusers folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..checkpoints import LoraFile
    from ..pipeline.named_loras import NamedLora

from ..errors import InputError
from ..io.printable import printable
from .option_types import file_path

DTYPES = ("float32", "float16", "bfloat16")
NOT_WRITTEN = (".pt", ".pth", ".ckpt", ".bin")  # files that only other tools write; hardly the name of a folder


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=file_path, help="released .pt, safetensors, diffusers or sharded folder")
    command.add_argument("target", type=file_path, help="a name ending in .safetensors, or a folder to be diffusers'")
    command.add_argument("--weights", default="auto", choices=("auto", "ema", "regular", "critic"))
    add_lora_argument(command)
    command.add_argument("--dtype", choices=DTYPES, help="default: as in the source")


def add_lora_argument(command: argparse._ActionsContainer, named: bool = False) -> None:
    """named: `NAME=FILE` is taken as well, for a LoRA that is kept apart."""
    command.add_argument(
        "--lora",
        action="append",
        metavar="[NAME=]FILE[:STRENGTH]" if named else "FILE[:STRENGTH]",
        help="a LoRA to merge in, as style.safetensors:0.8 (default: 1); may be given again"
        + ("; with a name its strength can be changed while the clip plays" if named else ""),
    )


def loras_of(arguments: argparse.Namespace) -> tuple[LoraFile, ...] | None:
    """The LoRAs of `--lora`, to be merged; None without any.

    Raises InputError for a strength that is 0 or no number, and for a LoRA with a name.
    """
    merged, named = split_loras(arguments)
    if named:
        raise InputError("lora", f"found the name {named[0].name}, which `salt live` takes, expected FILE[:STRENGTH]")
    return merged


def split_loras(arguments: argparse.Namespace) -> tuple[tuple[LoraFile, ...] | None, tuple[NamedLora, ...]]:
    """The LoRAs of `--lora`: those to be merged, None without any, and those with a name."""
    from ..checkpoints import LoraFile
    from ..pipeline.named_loras import NamedLora

    parsed = [NamedLora.parse(text) or LoraFile.parse(text) for text in arguments.lora or ()]
    merged = tuple(lora for lora in parsed if isinstance(lora, LoraFile))
    return merged or None, tuple(lora for lora in parsed if isinstance(lora, NamedLora))


def run(arguments: argparse.Namespace) -> None:
    if arguments.target.suffix in NOT_WRITTEN:
        raise ValueError(f"{arguments.target}: expected a name ending in .safetensors, or a folder to be diffusers'")
    both_exist = arguments.target.exists() and arguments.source.exists()
    if both_exist and arguments.target.samefile(arguments.source):
        raise ValueError(f"{arguments.target}: found the source, expected another file or folder")
    import torch

    from ..checkpoints import load_student, read_checkpoint, save_student

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    source = read_checkpoint(arguments.source, arguments.weights)
    model = load_student(arguments.source, weights=arguments.weights, lora=loras_of(arguments))
    save_student(model, arguments.target, spec=source.spec, size=source.size, dtype=dtype)
    print(f"written: {printable(arguments.target)}")
