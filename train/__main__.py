"""`python -m train`: train and evaluate few-step causal video students."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from train.command_line import run_command
from train.data.precompute import add_precompute
from train.distill import add_distill
from train.evaluation.command import add_evaluate
from train.experiments.ablation.runner import add_reproduce
from train.memory_estimate.report import add_estimate


def tiny(args: argparse.Namespace) -> None:
    """Train salt-tiny, or one stage of it."""
    from salt.spec import TINY_FOLDER
    from train.experiments.tiny import build

    out: Path = args.out
    budget = build.BUDGETS[args.budget]
    for stage in build.STAGES if args.stage == "all" else (args.stage,):
        build.run_stage(stage, out, budget, args.device, args.workers)
    if args.stage in ("all", "student"):
        teachers, student = (build.TEACHER_ASSETS, TINY_FOLDER) if args.install else (out, out / "tiny")
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
    """Run a command; returns the exit code (see `run_command`)."""
    return run_command(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
