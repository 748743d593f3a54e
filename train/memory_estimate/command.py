"""The command `python -m train estimate RECIPE [key=value ...] [--gpus 1 8] [--forms]`."""

from __future__ import annotations

import argparse

from salt.errors import InputError


def add_estimate(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    about = "Print how much memory a recipe needs on each GPU, and the time of an update; checkpoints need not exist."
    one = commands.add_parser("estimate", help=about, description=about)
    one.add_argument("recipe", help="a YAML file, or the name of one of ours")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="for example models.offload=true")
    one.add_argument(
        "--gpus", type=int, nargs="+", help="numbers of GPUs, a column each (default: 1 8 64, if the batch divides)"
    )
    one.add_argument("--forms", action="store_true", help="ways to run it: LoRAs, 8-bit states, shards (Markdown)")
    one.add_argument("--card", default="H100", help="the GPU whose peak times are computed from (default: H100)")
    one.add_argument("--share", type=float, default=0.4, help="of its peak that is reached, assumed (default: 0.4)")
    one.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from train.config.loader import load_recipe

    gpus = args.gpus or []
    if args.forms and gpus:
        raise InputError("gpus", "has no effect with --forms, which have numbers of their own")
    if min(gpus, default=1) < 1:
        raise InputError("gpus", f"found {min(gpus)}, expected 1 or more")
    recipe = load_recipe(args.recipe, args.overrides)  # a mistake in it is said before the slow imports below
    for field in ("sequence", "shard"):
        divisor = getattr(recipe.optimisation, field) or 1
        if wrong := [count for count in gpus if count % divisor]:
            raise InputError("gpus", f"found {wrong[0]}, expected multiples of optimisation.{field}={divisor}")

    from rich.console import Console

    from train.memory_estimate.report import forms_table, table
    from train.memory_estimate.time import Card

    card = Card(args.card, args.share)
    if args.forms:
        print(forms_table(recipe, card))
        return
    Console(markup=False, emoji=False).print(table(recipe, gpus, card=card))
