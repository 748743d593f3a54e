"""`python -m train reproduce`: arms of the study, one after another, resumable; the table is made of what there is.

An arm of one seed is a run folder like any other, `OUT/ARM/seed-N`, with its scores beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from salt.io.atomic import write_text
from train.config.loader import load_recipe
from train.config.recipe import Recipe
from train.config.validation import check_recipe
from train.distill import distill
from train.experiments.ablation.arms import FORCED, START, Arm, arms_named
from train.experiments.ablation.report import SCORES, finished, overview, paired, picture, plot, table
from train.experiments.ablation.scores import score_student
from train.experiments.tiny.ode_regression import train_start
from train.export import recipe_hash


def recipe_of(arm: Arm, seed: int, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The arm's recipe for one seed. overrides: of the whole study (length, batch), the same for every arm."""
    recipe = load_recipe("tiny", [*arm.overrides, *overrides])
    run = replace(recipe.run, out=str(out / arm.name / f"seed-{seed}"), seed=seed, tracker="none")
    return replace(recipe, name=arm.name, run=run)


def run_arm(arm: Arm, seed: int, out: Path, overrides: Sequence[str], prompts: int) -> dict[str, Any]:
    """Train (or go on training) and score one arm of one seed; what was scored already is read."""
    recipe = recipe_of(arm, seed, out, overrides)
    path = Path(recipe.run.out) / SCORES
    if path.exists():
        return json.loads(path.read_text())
    check_recipe(recipe)
    began = time.perf_counter()
    student = distill(recipe, "single")
    found = score_student(student, Path(recipe.models.vae), prompts)
    facts = {"arm": arm.name, "seed": seed, "recipe": recipe_hash(replace(recipe, run=replace(recipe.run, seed=0)))}
    minutes = (time.perf_counter() - began) / 60
    timed = {"updates": recipe.optimisation.updates, "minutes": round(minutes, 1), "prompts": prompts}
    write_text(path, json.dumps({**facts, **timed, **found}, indent=1) + "\n")
    return json.loads(path.read_text())


def run(arguments: argparse.Namespace) -> None:
    """Reproduce Salt's claims on the Shapes world: train and score the arms of the study, and write the table."""
    arms = arms_named(arguments.arms)
    if any(arm.group > 1 for arm in arms) and not (START / "final").exists():
        print(f"{START}: the initial student, from {FORCED}", flush=True)
        train_start(START, Path(FORCED))
    for arm in arms:
        for seed in arguments.seeds:
            print(f"{arm.name}, seed {seed}: {arm.about}", flush=True)
            run_arm(arm, seed, arguments.out, arguments.overrides, arguments.prompts)
    report(arguments.out)
    print(table(arguments.out))


def report(out: Path) -> None:
    """The tables and the plots of what is scored, and the pictures of the students that are still there."""
    tables = {
        "overview.md": overview(out),
        "table.md": table(out),
        "short.md": table(out, short=True),
        "paired.md": paired(out),
    }
    for name, text in tables.items():
        write_text(out / name, text + "\n")
    plot(out, out / "scores.png")
    students = present(out)
    if students:
        picture(students, Path(load_recipe("tiny").models.vae), out / "pictures.jpg")


def present(out: Path) -> dict[str, Path]:
    """A student of every scored arm that has one left, of the first seed that does."""
    found = {name: sorted(out.glob(f"{name}/seed-*/export/{name}.safetensors")) for name in finished(out)}
    return {name: paths[0] for name, paths in found.items() if paths}


def add_reproduce(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("reproduce", help=run.__doc__, description=__doc__)
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for all arms, as optimisation.updates=60")
    command.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="names or groups (default: all)")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    command.add_argument("--prompts", type=int, default=48, help="of ShapeBench's list, held-out ones first")
    command.add_argument("--out", type=Path, default=Path("runs/study"))
    command.set_defaults(run=run)
