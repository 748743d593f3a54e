"""Runs a parsed command of `python -m train` or of an experiment: exit codes, and errors as one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from salt.errors import InputError
from salt.io.interruption import exit_code, termination_as_interrupt
from salt.io.launcher import check_launcher, is_main_process, process_count, process_rank
from salt.io.printable import one_line

EXIT_ERROR = 2
DEVICE, DEVICE_HELP = "auto", "cpu, cuda, ... (default: CUDA where there is one)"  # of the option --device


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse and run; 0 if it worked, 2 after an error (one line on stderr), 130 after Ctrl-C, 143
    after SIGTERM.

    The parsed arguments have `run`, the command's function, and may have `device` and `debug` (errors are raised).
    """
    arguments = _parsed(parser, argv)
    try:
        check_launcher("train")
        if hasattr(arguments, "device"):
            arguments.device = _device(arguments.device)
        with termination_as_interrupt():
            arguments.run(arguments)
    except KeyboardInterrupt as interruption:
        print("interrupted; run the command again to resume", file=sys.stderr)
        return exit_code(interruption)
    except (ValueError, OSError, RuntimeError) as error:
        if getattr(arguments, "debug", False):
            raise
        process = "" if is_main_process() else f"process {process_rank()}: "
        print(f"error: {process}{_sentence(error, arguments)}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a recipe's `key=value` may also stand behind an option, where argparse does not look for it."""
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "overrides") and all("=" in x and not x.startswith("-") for x in rest):
        arguments.overrides = [*arguments.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _device(name: str) -> str:
    """The device of the option --device. Raises InputError for one that is not here."""
    import torch

    from salt.acceleration.device import usable_device

    if name == DEVICE:
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if process_count() > 1 else "cuda"
        return own if torch.cuda.is_available() else "cpu"
    return str(usable_device(name))


def _sentence(error: Exception, arguments: argparse.Namespace) -> str:
    """An error in one line; a field that is an option of the command is called by the option's name."""
    from train.config.recipe import RecipeError

    text = str(error)
    if isinstance(error, InputError) and not isinstance(error, RecipeError) and hasattr(arguments, error.field):
        text = error.phrased(f"--{error.field.replace('_', '-')}")
    return one_line(text) if text else type(error).__name__


def run_single_command(
    prog: str, description: str | None, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> int:
    """Run a program that has one command, with the options of `add_arguments` and `--debug`; see `run_command`."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_arguments(parser)
    return run_command(parser)
