"""`python -m train gradients RECIPE`: how large the semigroup and alignment losses' gradients are beside DMD's.

For every exit step of every step list, on the models of the run's newest checkpoint, else on those that it starts from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from salt.cli.option_types import file_path
from salt.errors import InputError


def gradients(arguments: argparse.Namespace) -> None:
    """Compare the gradient norms of a recipe's losses, by exit step."""
    from train.config.loader import load_recipe
    from train.config.model_configs import check_backbones
    from train.config.validation import check_recipe

    for name in ("seeds", "batches"):
        if (found := getattr(arguments, name)) < 1:
            raise InputError(name, f"found {found}, expected 1 or more")
    recipe = load_recipe(arguments.recipe, arguments.overrides)  # a mistake in it is said before the slow import below
    check_recipe(recipe)
    check_backbones(recipe)

    from salt.io.atomic import write_text
    from train.gradients import measure
    from train.gradients.report import as_json, table

    rows, done = measure.measure_gradients(recipe, range(arguments.seeds), arguments.batches)
    print(table(recipe, rows, done, arguments.seeds, arguments.batches))
    if arguments.out:
        write_text(arguments.out, as_json(rows, done))


def add_gradients(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    command = commands.add_parser("gradients", help=gradients.__doc__, description=__doc__)
    command.add_argument("recipe", type=Path, help="a YAML file, or the name of one in train/recipes")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="as distill takes them")
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds of prompts and noise (default: 3)")
    command.add_argument("--batches", type=int, default=4, metavar="N", help="micro-batches of each (default: 4)")
    command.add_argument("--out", type=file_path, help="a JSON file for all norms")
    command.set_defaults(run=gradients)
