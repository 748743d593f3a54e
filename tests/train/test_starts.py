"""The comparison of two starts of distillation: what is recorded, and the table of it."""

import json
from pathlib import Path

import pytest

from train.config.validation import check_settings
from train.experiments.starts.runner import STARTS, distillation_recipe, start_recipe, table, timed

ROOT = Path(__file__).parents[2]


def test_both_starts_have_recipes_that_can_run(tmp_path):
    for name in STARTS:
        recipe = start_recipe(name, tmp_path, 3)
        check_settings(recipe)
        assert (recipe.stage, recipe.run.seed, recipe.models.student) == (name, 3, recipe.models.teacher)
    check_settings(distillation_recipe("cd", tmp_path / "cd.safetensors", tmp_path, 3))


def test_processor_time_adds_up_over_interruptions(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path, "cd", 0, "start", interrupted)
    path = tmp_path / "cd/seed-0/record.json"
    record = json.loads(path.read_text())
    assert record["start"] == {"finished": False, "processor_s": 0}
    path.write_text(json.dumps({**record, "start": {"finished": False, "processor_s": 7}}))
    timed(tmp_path, "cd", 0, "start", lambda: {"1": {"passed": 0.5}})
    record = json.loads(path.read_text())
    assert record["start"] == {"finished": True, "processor_s": 7, "by_evaluations": {"1": {"passed": 0.5}}}
    timed(tmp_path, "cd", 0, "start", interrupted)  # finished, so nothing runs


def test_the_table_has_every_seed_the_mean_and_the_difference(tmp_path):
    passed = {("ode", 0): (0.1, 0.2, 0.3), ("ode", 1): (0.3, 0.4, 0.5), ("cd", 0): (0.2, 0.2, 0.25)}
    passed["cd", 1] = (0.2, 0.4, 0.45)
    for (name, seed), values in passed.items():
        (tmp_path / name / f"seed-{seed}").mkdir(parents=True)
        found = {str(n): {"passed": v} for n, v in zip((1, 2, 4), values, strict=True)}
        scores = {"finished": True, "processor_s": 1, "by_evaluations": found}
        record = {"arm": name, "seed": seed, "scores_start": scores}
        (tmp_path / name / f"seed-{seed}" / "record.json").write_text(json.dumps(record))
    rows = table(tmp_path).splitlines()
    assert rows[0] == "| | seed | 1 NFE | 2 NFE | 4 NFE |"
    assert rows[2:-1] == [
        "| `ode`, start alone | 0 | 10 % | 20 % | 30 % |",
        "| `ode`, start alone | 1 | 30 % | 40 % | 50 % |",
        "| `ode`, start alone | mean | 20 % | 30 % | 40 % |",
        "| `cd`, start alone | 0 | 20 % | 20 % | 25 % |",
        "| `cd`, start alone | 1 | 20 % | 40 % | 45 % |",
        "| `cd`, start alone | mean | 20 % | 30 % | 35 % |",
        "| `cd` less `ode`, start alone | 0 | +10 | +0 | -5 |",
        "| `cd` less `ode`, start alone | 1 | -10 | +0 | -5 |",
        "| `cd` less `ode`, start alone | mean | +0 ± 10 | +0 ± 0 | -5 ± 0 |",
        "",
    ]
    assert rows[-1].startswith("3 comparisons. \\* p < 0.05: 0, where chance alone gives 0.2.")


def test_the_study_says_what_the_recorded_scores_say():
    page = " ".join((ROOT / "docs/study.md").read_text().split())
    rows = table(ROOT / "train/experiments/starts/results").splitlines()
    means = [row.split(" | ")[2:] for row in rows if "less `ode`" in row and "| mean |" in row]
    points = [cell.strip(" |").replace(" *", "") for cells in means for cell in cells]
    assert len(points) == 6 and all(point in page for point in points), points
