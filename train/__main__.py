"""`python -m train`: the training room's front desk. Each command is a few lines here and a module elsewhere."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from salt.acceleration.device import usable_device
from salt.errors import InputError
from train.config.recipe import RecipeError
from train.data.precompute import add_precompute
from train.distill import add_distill, is_main
from train.evaluation.command import add_evaluate
from train.experiments.ablation.runner import add_reproduce
from train.memory_estimate.report import add_estimate

FAILED, INTERRUPTED = 2, 130


def tiny(args: argparse.Namespace) -> None:
    """Make salt-tiny, or one stage of it."""
    from train.experiments.tiny import build

    out: Path = args.out
    budget = build.BUDGETS[args.budget]
    for stage in build.STAGES if args.stage == "all" else (args.stage,):
        build.run_stage(stage, out, budget, args.device, args.workers)
    if args.stage in ("all", "student"):
        teachers, student = (build.TEACHER_ASSETS, build.STUDENT_ASSETS) if args.install else (out, out / "tiny")
        build.ship(out, teachers, student, budget)
        print(f"shipped to {student} and {teachers}")


def parser() -> argparse.ArgumentParser:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    root = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    root.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("tiny", help=tiny.__doc__)
    one.add_argument("--stage", choices=("vae", "teacher", "student", "all"), default="all")
    one.add_argument("--budget", choices=("quick", "full"), default="full", help="quick: some minutes, to see it learn")
    one.add_argument("--out", type=Path, default=Path("runs/tiny"), help="checkpoints, curves and results; resumable")
    one.add_argument("--device", default=device)
    one.add_argument(
        "--workers",
        type=int,
        default=1 if device == "cuda" else os.cpu_count() or 1,
        help="single-threaded worker processes that share each batch (CPU)",
    )
    one.add_argument("--install", action="store_true", help="put the result in the repository's assets, not in OUT")
    one.set_defaults(run=tiny)

    for add in (add_evaluate, add_distill, add_precompute, add_estimate, add_reproduce):
        add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 2 after an error (one line on stderr), 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        if hasattr(arguments, "device"):
            usable_device(arguments.device)
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted; give the command again to go on", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        if arguments.debug:
            raise
        # What is wrong with a recipe every process finds; anything else may have met only this one.
        if is_main() or not isinstance(error, RecipeError):
            option = isinstance(error, InputError) and hasattr(arguments, error.field)
            text = error.phrased(f"--{error.field}") if option else str(error)
            print("error:", " ".join(text.splitlines()) or type(error).__name__, file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
