"""The command `python -m train estimate RECIPE [key=value ...] [--gpus 1 8 64]`."""

from __future__ import annotations

import argparse

from salt.errors import InputError


def add_estimate(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    about = "Print how much memory a recipe needs on each GPU; its checkpoints need not exist."
    one = commands.add_parser("estimate", help=about, description=about)
    one.add_argument("recipe", help="a YAML file, or the name of one of ours")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="for example models.offload=true")
    one.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    one.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from train.config.loader import load_recipe

    if min(args.gpus) < 1:
        raise InputError("gpus", f"found {min(args.gpus)}, expected 1 or more")
    recipe = load_recipe(args.recipe, args.overrides)  # a mistake in it is said before the slow imports below

    from rich.console import Console

    from train.memory_estimate.report import table

    Console(markup=False, emoji=False).print(table(recipe, args.gpus))
