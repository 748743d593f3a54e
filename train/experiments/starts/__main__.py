"""Train and score students on the two starts, ODE regression and consistency distillation, and write their table."""

import argparse
import sys
from pathlib import Path

from salt.cli.option_types import file_path
from train.command_line import run_single_command


def starts(arguments: argparse.Namespace) -> None:
    """Train, distil and score a student on each start."""
    from train.experiments.starts.runner import run_seed, table

    for seed in arguments.seeds:
        run_seed(arguments.out, seed, arguments.starts)
    print(table(arguments.out))


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: the table of what is recorded")
    command.add_argument("--starts", nargs="+", default=["ode", "cd"], choices=["ode", "cd"])
    command.add_argument("--out", type=file_path, default=Path("runs/starts"), help="resumable")
    command.set_defaults(run=starts)


if __name__ == "__main__":
    sys.exit(run_single_command("python -m train.experiments.starts", __doc__, add_arguments))
