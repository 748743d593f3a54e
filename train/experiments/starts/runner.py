"""One seed of an arm: the start, its distillation by DMD, and ShapeBench of both at 1, 2 and 4 evaluations.

Both starts take the same processor time on the machine that docs/study.md names, the trajectories' included. What they
share costs neither: the causal teacher, and the clips that it was trained on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from salt.checkpoints import load_student, read_checkpoint
from salt.io.atomic import write_text
from salt.spec import StudentSpec
from train.config.loader import load_recipe
from train.config.recipe import Recipe
from train.data.encode_videos import encode_videos
from train.data.trajectories import generate_clips
from train.distill import distill
from train.evaluation.sampling import load_vae
from train.evaluation.shapebench import score_model
from train.experiments.ablation.paired_differences import Difference, over_seeds, verdict
from train.experiments.ablation.scores import summarize_scores

EVALUATIONS = (1, 2, 4)
SCORED_SEED = 6000  # used by no other table
TEACHER = "train/assets/tiny_forced"
REAL_CLIPS = 400
# Of both starts: 4 blocks, AdamW, the 4-step list, a whole batch per forward.
COMMON = (
    f"models.student={TEACHER}", f"models.teacher={TEACHER}", "rollout.frames=12", "rollout.share={4: 1.0}",
    "optimisation.batch=8", "optimisation.micro_batch=8", "optimisation.lr=5e-4", "run.save_every=20",
    "run.sample_every=0", "run.tracker=none",
)  # fmt: skip
STARTS = {
    "ode": (
        "start.teacher_steps=24", "start.clips=112", "optimisation.updates=100",
        "start.history=rollout", "data.history=", "start.step_for=block",
    ),
    "cd": (f"start.clips={REAL_CLIPS}", "optimisation.updates=90"),
}  # fmt: skip
# Distillation of either: half of the rollouts at 2 steps, since few evaluations are what a start is compared by.
DMD = (
    f"models.teacher={TEACHER}", "rollout.frames=12", "rollout.share={4: 0.5, 2: 0.5}", "optimisation.batch=8",
    "optimisation.micro_batch=8", "optimisation.critic_per_generator=3", "optimisation.updates=30",
    "run.save_every=10", "run.sample_every=0", "run.tracker=none",
)  # fmt: skip


def start_recipe(name: str, out: Path, seed: int) -> Recipe:
    """The recipe of a start. Its clips: real ones for every seed, or trajectories of its own."""
    clips = out / "clips" if name == "cd" else out / name / f"seed-{seed}" / "clips"
    overrides = (*COMMON, *STARTS[name], f"data.clips={clips}", f"run.seed={seed}")
    return load_recipe(f"tiny_{name}", [*overrides, f"run.out={out / name / f'seed-{seed}' / 'start'}"])


def distillation_recipe(name: str, student: Path, out: Path, seed: int) -> Recipe:
    """DMD from a start's student."""
    settings = (*DMD, f"models.student={student}", f"run.seed={seed}")
    return load_recipe("tiny", [*settings, f"run.out={out / name / f'seed-{seed}' / 'distilled'}"])


def run_seed(out: Path, seed: int, names: Sequence[str]) -> None:
    """Train and score what has no record yet: first the starts, then their distillation."""
    encode_videos(start_recipe("cd", out, 0), None, torch.device("cpu"))
    for name in names:
        recipe = start_recipe(name, out, seed)
        if name == "ode":
            timed(out, name, seed, "trajectories", partial(generate_clips, recipe, torch.device("cpu")))
        train_and_score(recipe, out, name, seed, "start")
    for name in names:
        tuned = distillation_recipe(name, exported(start_recipe(name, out, seed)), out, seed)
        train_and_score(tuned, out, name, seed, "distilled")


def train_and_score(recipe: Recipe, out: Path, name: str, seed: int, stage: str) -> None:
    timed(out, name, seed, stage, partial(distill, recipe, "single"))
    timed(out, name, seed, f"scores_{stage}", partial(scores, exported(recipe), Path(recipe.models.vae)))


def exported(recipe: Recipe) -> Path:
    return Path(recipe.run.out) / "export" / f"{recipe.name}.safetensors"


def timed(out: Path, name: str, seed: int, stage: str, work: Callable[[], object]) -> None:
    """Run a stage that is not finished, and record its processor time and what it returns (if it is a table)."""
    path = out / name / f"seed-{seed}" / "record.json"
    record = json.loads(path.read_text()) if path.exists() else {"arm": name, "seed": seed}
    entry = record.setdefault(stage, {"finished": False, "processor_s": 0})
    if entry["finished"]:
        return
    began = time.process_time()
    try:
        found = work()
        entry |= {"finished": True, "by_evaluations": found} if isinstance(found, dict) else {"finished": True}
    finally:
        entry["processor_s"] += round(time.process_time() - began)
        write_text(path, json.dumps(record, indent=1) + "\n")


def scores(student: Path, vae: Path) -> dict[str, dict[str, object]]:
    """ShapeBench by number of evaluations: means over the 48 prompts, and which clips passed."""
    spec = read_checkpoint(student).spec or StudentSpec()
    model, decoder = load_student(student, dtype=torch.float32), load_vae(vae, dtype=torch.bfloat16)
    found: dict[str, dict[str, object]] = {}
    for count in EVALUATIONS:
        clips = score_model(model, decoder, count, seed=SCORED_SEED, spec=spec)
        found[str(count)] = {**summarize_scores(clips), "clips": [int(clip.passed) for clip in clips]}
    return found


def records(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("*/seed-*/record.json"))]


def table(out: Path) -> str:
    """Markdown: percentage passed by start, stage and evaluations, every seed and the mean, the difference in points
    with its standard error over the seeds, and how many comparisons these are."""
    rows = [f"| | seed | {' | '.join(f'{n} NFE' for n in EVALUATIONS)} |", "|" + "---|" * (2 + len(EVALUATIONS))]
    found, compared = records(out), list[tuple[str, Difference]]()
    for stage, words in (("start", "start alone"), ("distilled", "after DMD")):
        done = [r for r in found if r.get(f"scores_{stage}", {}).get("finished")]
        passed = {(r["arm"], r["seed"]): [_passed(r, stage, n) for n in EVALUATIONS] for r in done}
        for name in STARTS:
            own = {seed: values for (start, seed), values in passed.items() if start == name}
            rows += [_row(f"`{name}`, {words}", str(seed), values) for seed, values in own.items()]
            if len(own) > 1:
                rows.append(_row(f"`{name}`, {words}", "mean", [fmean(v) for v in zip(*own.values(), strict=True)]))
        both = [s for (start, s) in passed if start == "cd" and ("ode", s) in passed]
        differences = [[a - b for a, b in zip(passed["cd", seed], passed["ode", seed], strict=True)] for seed in both]
        name = f"`cd` less `ode`, {words}"
        rows += [_row(name, str(seed), values, sign=True) for seed, values in zip(both, differences, strict=True)]
        means = [over_seeds(values) for values in zip(*differences, strict=True)]
        compared += [(f"{name}, {n} NFE", mean) for n, mean in zip(EVALUATIONS, means, strict=False)]
        if len(both) > 1:
            rows.append(f"| {name} | mean | {' | '.join(mean.text(0) for mean in means)} |")
    return "\n".join([*rows, "", verdict(compared)])


def _passed(record: dict, stage: str, count: int) -> float:
    return 100 * record[f"scores_{stage}"]["by_evaluations"][str(count)]["passed"]


def _row(name: str, seed: str, values: Sequence[float], sign: bool = False) -> str:
    return f"| {name} | {seed} | {' | '.join(f'{v:+.0f}' if sign else f'{v:.0f} %' for v in values)} |"
