"""Runs arms of the study, one after another, resumable, and writes tables of all recorded scores.

An arm of one seed has the run folder `OUT/ARM/seed-N`, with its scores in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from salt.io.atomic import write_text
from train.config.loader import load_recipe
from train.config.recipe import Recipe
from train.config.validation import check_recipe
from train.distill import distill
from train.experiments.ablation.arms import FORCED, START, Arm, arms_named
from train.experiments.ablation.deciding import run_deciding_arm
from train.experiments.ablation.deciding_report import deciding_tables
from train.experiments.ablation.report import SCORES, finished, overview, paired, parts, picture, plot, table
from train.experiments.ablation.scores import score_student
from train.experiments.tiny.ode_regression import train_start
from train.export import recipe_hash


def recipe_of(arm: Arm, seed: int, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The arm's recipe for one seed. overrides: of the whole study (length, batch), the same for every arm."""
    recipe = load_recipe("tiny", [*arm.overrides, *overrides])
    run = replace(recipe.run, out=str(out / arm.name / f"seed-{seed}"), seed=seed, tracker="none")
    return replace(recipe, name=arm.name, run=run)


def run_arm(arm: Arm, seed: int, out: Path, overrides: Sequence[str], prompts: int) -> dict[str, Any]:
    """Train (or resume) and score one arm of one seed; recorded scores are read instead."""
    recipe = recipe_of(arm, seed, out, overrides)
    path = Path(recipe.run.out) / SCORES
    if path.exists():
        return json.loads(path.read_text())
    check_recipe(recipe)
    began = time.perf_counter()
    student = distill(recipe, "single")
    scores = score_student(student, Path(recipe.models.vae), prompts)
    facts = {"arm": arm.name, "seed": seed, "recipe": recipe_hash(replace(recipe, run=replace(recipe.run, seed=0)))}
    minutes = (time.perf_counter() - began) / 60
    timed = {"updates": recipe.optimisation.updates, "minutes": round(minutes, 1), "prompts": prompts}
    write_text(path, json.dumps({**facts, **timed, **scores}, indent=1) + "\n")
    return json.loads(path.read_text())


def run(arguments: argparse.Namespace) -> None:
    """Train and score the arms of the study on the Shapes world, and write its tables."""
    arms = arms_named(arguments.arms)
    if arguments.seeds and any(1 < arm.group < 5 for arm in arms) and not (START / "final").exists():
        print(f"{START}: the initial student, from {FORCED}", flush=True)
        train_start(START, Path(FORCED))
    # All arms of a seed before the next seed: what there is when it is stopped can be compared.
    for seed, arm in product(arguments.seeds, arms):
        print(f"{arm.name}, seed {seed}: {arm.about}", flush=True)
        if arm.group == 5:
            run_deciding_arm(arm, recipe_of(arm, seed, arguments.out, arguments.overrides), arguments.out)
        else:
            run_arm(arm, seed, arguments.out, arguments.overrides, arguments.prompts)
    report(arguments.out)
    print(
        "\n\n".join(
            filter(None, (table(arguments.out) if finished(arguments.out) else "", deciding_tables(arguments.out)))
        )
    )


def report(out: Path) -> None:
    """Write tables and a plot of all recorded scores, and pictures of the students that still exist."""
    if deciding := deciding_tables(out):
        write_text(out / "deciding.md", deciding + "\n")
    if not finished(out):
        return
    tables = {
        "overview.md": overview(out),
        "table.md": table(out),
        "short.md": table(out, short=True),
        "paired.md": paired(out),
        "parts.md": parts(out),
    }
    for name, text in tables.items():
        write_text(out / name, text + "\n")
    plot(out, out / "scores.png")
    students = existing_students(out)
    if students:
        picture(students, Path(load_recipe("tiny").models.vae), out / "pictures.jpg")


def existing_students(out: Path) -> dict[str, Path]:
    """Path of a student per scored arm, of the first seed that still has one."""
    found = {name: sorted(out.glob(f"{name}/seed-*/export/{name}.safetensors")) for name in finished(out)}
    return {name: paths[0] for name, paths in found.items() if paths}
