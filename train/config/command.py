"""The command `python -m train recipes`: the recipes by name, with what each trains and on how many GPUs."""

from __future__ import annotations

import argparse


def recipes(arguments: argparse.Namespace) -> None:
    """List the recipes: what each trains, and the GPUs that it needs."""
    from rich.console import Console
    from rich.table import Table

    from train.config.loader import recipe_names, recipe_summary

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what", no_wrap=True, overflow="ellipsis")
    table.add_column("GPUs (estimated)", no_wrap=True)
    for name in recipe_names():
        table.add_row(name, *recipe_summary(name))
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:  # one line each, also where the output goes into a file
        console.width = 280
    console.print(table)


def add_recipes(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    command = commands.add_parser("recipes", help=recipes.__doc__, description=__doc__)
    command.set_defaults(run=recipes)
