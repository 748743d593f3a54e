"""`python -m train distill RECIPE`: from a recipe to an exported student, in one process or several.

A run resumes from its newest checkpoint. Several GPUs: `accelerate launch --num_processes 8 -m train distill ...`;
several processes on a CPU: `torchrun --nproc_per_node 2 -m train distill ...`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def distill(arguments: argparse.Namespace) -> None:
    """Distil a student (or train its initial student: stages ode and tf)."""
    from train.config.loader import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)  # a mistake in it is said before the slow import below

    from train.distill import run

    run(recipe, arguments)


def add_distill(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    command = commands.add_parser("distill", help=distill.__doc__, description=__doc__)
    command.add_argument("recipe", type=Path, help="a YAML file, or the name of one in train/recipes")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="as optimisation.lr=1e-5")
    command.add_argument("--dry-run", action="store_true", help="two updates with tiny random models, on any machine")
    command.add_argument(
        "--mode", choices=("auto", "single", "ddp", "fsdp"), default="auto", help="how several processes are used"
    )
    command.add_argument("--keep", type=int, metavar="N", help="complete checkpoints to keep (run.keep)")
    command.add_argument("--push", default="", metavar="OWNER/NAME", help="upload the export to the hub")
    command.set_defaults(run=distill)
