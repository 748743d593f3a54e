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
from statistics import fmean
from typing import Any

from salt.files import replacing
from train.checks import check_recipe
from train.distill import distill
from train.publish import recipe_hash
from train.recipe import Recipe, load_recipe
from train.study.arms import ARMS, COMMON, Arm, arms_named
from train.study.scores import score_student

SCORES = "study.json"
COLUMNS = ("passed", "semantics", "quality", "motion")


def recipe_of(arm: Arm, seed: int, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The arm's recipe for one seed. overrides: of the whole study (length, batch), the same for every arm."""
    recipe = load_recipe("tiny", [*COMMON, *arm.overrides, *overrides])
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
    trained = time.perf_counter() - began
    found = score_student(student, Path(recipe.models.vae), prompts)
    facts = {"arm": arm.name, "seed": seed, "recipe": recipe_hash(replace(recipe, run=replace(recipe.run, seed=0)))}
    timed = {"updates": recipe.optimisation.updates, "seconds of this call": trained, "prompts": prompts}
    with replacing(path) as partial:
        partial.write_text(json.dumps({**facts, **timed, **found}, indent=1) + "\n")
    return json.loads(path.read_text())


def finished(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Scores of every arm that has any, seeds in order."""
    found = {a.name: [json.loads(p.read_text()) for p in sorted(out.glob(f"{a.name}/seed-*/{SCORES}"))] for a in ARMS}
    return {name: runs for name, runs in found.items() if runs}


def table(out: Path) -> str:
    """Markdown: a line per arm and setting, means over seeds and how far apart the seeds lie."""
    lines = [
        f"| arm | NFE / memory / latent frames | {' | '.join(COLUMNS)} | defect, euler | defect, sampler | seeds | "
        f"recipe |",
        "|" + "---|" * (len(COLUMNS) + 6),
    ]
    for name, runs in finished(out).items():
        about = next(a.about for a in ARMS if a.name == name)
        defects = [spread([r["defect"][o] for r in runs], 4) for o in ("euler", "sampler")]
        for setting in runs[0]["scores"]:
            values = [spread([r["scores"][setting][c] for r in runs], 2) for c in COLUMNS]
            lines.append(
                f"| {about} | {setting} | {' | '.join(values)} | {' | '.join(defects)} | {len(runs)} | "
                f"{runs[0]['recipe']} |"
            )
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and half the distance between the extremes where there are several."""
    half = (max(values) - min(values)) / 2
    return f"{fmean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def run(arguments: argparse.Namespace) -> None:
    """Reproduce Salt's claims on the Shapes world: train and score the arms of the study, and write the table."""
    for arm in arms_named(arguments.arms):
        for seed in arguments.seeds:
            print(f"{arm.name}, seed {seed}: {arm.about}", flush=True)
            run_arm(arm, seed, arguments.out, arguments.overrides, arguments.prompts)
            with replacing(arguments.out / "table.md") as partial:
                partial.write_text(table(arguments.out) + "\n")
    print(table(arguments.out))


def add_reproduce(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("reproduce", help=run.__doc__, description=__doc__)
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for all arms, as optimisation.updates=60")
    command.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="names or groups (default: all)")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    command.add_argument("--prompts", type=int, default=48, help="of ShapeBench's list, held-out ones first")
    command.add_argument("--out", type=Path, default=Path("runs/study"))
    command.set_defaults(run=run)
