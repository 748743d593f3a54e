"""Make one clip with the embedded model, on the CPU and without a download."""

from __future__ import annotations

import argparse
from pathlib import Path

from .option_types import file_path

PROMPT = "a fast yellow square moving left"
FRAMES = 81
NFE = 2


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", type=file_path, default=Path("demo.mp4"))
    command.add_argument("--prompt", default=PROMPT)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--nfe", type=int, default=NFE, help="model evaluations per block (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from ..io.printable import printable
    from ..pipeline.from_options import PipelineOptions
    from .generation import GenerationOptions, generate_one

    inputs = {"num_frames": FRAMES, "fuse": True, "num_inference_steps": arguments.nfe}
    options = GenerationOptions(PipelineOptions(device="cpu"), arguments.seed, inputs)
    stats = generate_one(arguments.prompt, arguments.out, options)
    print(f'{arguments.out}: "{printable(arguments.prompt)}", {stats}')
