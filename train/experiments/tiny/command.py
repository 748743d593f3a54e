"""The command that trains salt-tiny: `python -m train tiny`, or `python -m train.experiments.tiny`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from salt.cli.option_types import file_path
from train.command_line import DEVICE, DEVICE_HELP


def tiny(arguments: argparse.Namespace) -> None:
    """Train salt-tiny, or one stage of it."""
    from salt.spec import TINY_FOLDER
    from train.experiments.tiny import build

    out: Path = arguments.out
    budget = build.BUDGETS[arguments.budget]
    on_gpu = arguments.device.startswith("cuda")
    workers = arguments.workers or (1 if on_gpu else os.cpu_count() or 1)
    for stage in build.STAGES if arguments.stage == "all" else (arguments.stage,):
        build.run_stage(stage, out, budget, arguments.device, workers)
    if arguments.stage in ("all", "student"):
        teachers, student = (build.TEACHER_ASSETS, TINY_FOLDER) if arguments.install else (out, out / "tiny")
        build.ship(out, teachers, student, budget)
        print(f"shipped to {student} and {teachers}")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command; `run` is `tiny`."""
    command.add_argument("--stage", choices=("vae", "teacher", "student", "all"), default="all")
    command.add_argument("--budget", choices=("quick", "full"), default="full", help="quick: a test run of minutes")
    command.add_argument(
        "--out", type=file_path, default=Path("runs/tiny"), help="checkpoints, curves, results; resumable"
    )
    command.add_argument("--device", default=DEVICE, help=DEVICE_HELP)
    command.add_argument(
        "--workers",
        type=int,
        help="single-threaded worker processes that share each batch (default: one per CPU core; 1 on a GPU)",
    )
    command.add_argument("--install", action="store_true", help="write to the repository's assets instead of OUT")
    command.set_defaults(run=tiny)


def add_tiny(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    add_arguments(commands.add_parser("tiny", help=tiny.__doc__, description=__doc__))
