"""The command line `salt`: one file per subcommand, and errors as one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..errors import InputError
from ..io.interruption import exit_code, termination_as_interrupt
from ..io.printable import PrintableFormatter, one_line
from . import convert, demo, doctor, generate, inspect, live, plan, pull, replay, run_workflow, selftest

COMMANDS = (generate, live, replay, demo, convert, inspect, plan, doctor, selftest, pull, run_workflow)
FAILED = 2  # exit code


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="salt", description="Few-step autoregressive video on your own machine. `salt demo` needs no download."
    )
    root.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        about = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=about, description=about)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 2 after an error (one line on stderr), 130 after Ctrl-C, 143 after SIGTERM."""
    arguments = parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("salt").setLevel(logging.INFO)
    try:
        with termination_as_interrupt():
            arguments.run(arguments)
    except KeyboardInterrupt as interruption:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return exit_code(interruption)
    except (ValueError, OSError, RuntimeError) as error:
        if arguments.debug:
            raise
        field = generate.OPTIONS.get(error.field) if isinstance(error, InputError) else None
        text = error.phrased(field) if isinstance(error, InputError) and field else str(error)
        print("error:", one_line(text) if text else type(error).__name__, file=sys.stderr)
        return FAILED
    return 0
