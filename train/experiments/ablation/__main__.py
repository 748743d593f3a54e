"""`python -m train.experiments.ablation`: train and score the arms of the study, and write its tables."""

import argparse
import sys
from collections.abc import Sequence

from train.command_line import run_command
from train.experiments.ablation.runner import add_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (see `run_command`)."""
    parser = argparse.ArgumentParser(prog="python -m train.experiments.ablation", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_arguments(parser)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
