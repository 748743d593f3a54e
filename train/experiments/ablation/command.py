"""Runs the arms of the study: `python -m train reproduce`, or `python -m train.experiments.ablation`."""

from __future__ import annotations

import argparse
from pathlib import Path

from salt.cli.option_types import file_path


def reproduce(arguments: argparse.Namespace) -> None:
    """Train and score the arms of the study on the Shapes world, and write its tables."""
    from train.experiments.ablation.runner import run

    run(arguments)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command; `run` is `reproduce`."""
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for all arms, as optimisation.updates=60")
    command.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="names or groups (default: all)")
    command.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: the tables of what is recorded")
    command.add_argument("--prompts", type=int, default=48, help="of ShapeBench's list, held-out ones first")
    command.add_argument("--out", type=file_path, default=Path("runs/study"))
    command.set_defaults(run=reproduce)


def add_reproduce(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    add_arguments(commands.add_parser("reproduce", help=reproduce.__doc__, description=__doc__))
