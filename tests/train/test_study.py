"""The ablation study: every arm is a valid recipe, scored arms are kept, and tables come from recorded scores."""

import json
from pathlib import Path

import pytest

from train.config.loader import load_recipe
from train.config.model_configs import check_backbones
from train.config.validation import check_recipe
from train.experiments.ablation import report, runner, scores
from train.experiments.ablation.arms import ARMS, FORCED, arms_named
from train.experiments.ablation.paired_differences import over_seeds, two_sided_p, verdict
from train.shapes.world import render

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "train/experiments/ablation/results"
SHIPPED = "models.student=salt/assets/tiny/transformer"


def test_every_arm_is_a_valid_recipe_and_no_two_are_equal(tmp_path):
    hashes = set()
    for arm in ARMS:
        there = [] if arm.group == 1 else [SHIPPED]  # the first run trains the initial student
        there += ["models.critic="] if arm.group == 5 else []
        recipe = runner.recipe_of(arm, 1, tmp_path, ["optimisation.batch=4", "optimisation.micro_batch=4", *there])
        check_recipe(recipe)
        check_backbones(recipe)
        assert recipe.run.seed == 1 and recipe.optimisation.batch == 4
        hashes.add((runner.recipe_hash(recipe), arm.sc_share))
    assert len(hashes) == len(ARMS), "no two arms are the same"
    assert [a.name for a in arms_named(["1"])] == ["dmd4", "dmd8", "scdmd", "scdmd-strong"]
    with pytest.raises(ValueError, match="--arms: found 'best'"):
        arms_named(["best"])


def test_recipes_share_the_arms_teacher_and_recorded_hashes_are_the_arms(tmp_path):
    for name in ("tiny", "tiny_salt", "tiny_relative_salt"):
        recipe = load_recipe(name)
        assert (recipe.models.teacher, recipe.loss.score) == (FORCED, "causal")
    recorded = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/seed-*/study.json"))]
    assert recorded
    for facts in recorded:
        (arm,) = arms_named([facts["arm"]])
        assert runner.recipe_hash(runner.recipe_of(arm, 0, tmp_path)) == facts["recipe"], arm.name


def test_scores_of_rendered_clips():
    import torch

    from train.shapes.bench import score_clip

    clips = render(scores.PROMPTS[:2], 33, torch.Generator().manual_seed(0))

    def scored(pixels):
        return scores.summarize_scores([score_clip(clip, s) for clip, s in zip(pixels, clips.scenes, strict=True)])

    found = scored(clips.pixels)
    assert found["passed"] == found["semantics"] == 1 and found["motion"] == pytest.approx(1, abs=0.1)
    fading = scored(clips.pixels * torch.linspace(1, 0.5, 33)[:, None, None])
    assert found["drift"] < 0.05 and fading["drift"] > 0.1
    still = scored(clips.pixels[:, :, :1].expand(-1, -1, 33, -1, -1))
    assert still["motion"] < 0.2 and still["passed"] == 0


def test_rows_have_means_and_spreads_and_the_last_lines_the_scatter_of_one_seed(tmp_path):
    def keep(arm, seed, passed, **others):
        path = tmp_path / arm / f"seed-{seed}" / runner.SCORES
        path.parent.mkdir(parents=True)
        found = {**dict.fromkeys(("semantics", "quality", "motion"), 0.5), "passed": passed, **others}
        by_setting = dict.fromkeys(("4 / full / 21", "2 / full / 21"), found)
        facts = {"seed": seed, "recipe": "abc", "minutes": 1.0, "defect": {"euler": 0.1, "sampler": 0.2}}
        path.write_text(json.dumps({**facts, "scores": by_setting}))

    keep("fixed", 0, 0.7)
    keep("fixed", 1, 0.9, drift=0.3)  # the other was scored before the column `drift` existed
    keep("mixed", 0, 0.5)
    keep("mixed", 1, 0.6)
    keep("mixed", 2, 0.7)
    head, _, fixed, _, mixed, _, scatter, _ = (line.split(" | ") for line in report.table(tmp_path).splitlines())
    at = {name.strip("| "): i for i, name in enumerate(head)}
    assert [fixed[at[c]] for c in ("passed", "drift", "seeds")] == ["0.80 ± 0.10", "0.30", "2"]
    assert [mixed[at[c]] for c in ("passed", "drift", "seeds")] == ["0.60 ± 0.10", "-", "3"]
    # Squares 0.01 + 0.01 and 0.01 + 0 + 0.01, with one and two degrees of freedom.
    assert scatter[at["passed"]] == f"{(0.04 / 3) ** 0.5:.2f}" and scatter[at["drift"]] == "-"
    row = "| `mixed`: mixed steps alone | `fixed` | 3 | 60 % (-25 ± 5, 2 of 3 seeds) |"
    overview = report.overview(tmp_path).splitlines()
    assert overview[3].startswith(row) and overview[-1].startswith("2 comparisons.")
    lines = report.paired(tmp_path).splitlines()
    assert lines[2] == "| `mixed` less `fixed` | 4 | -20 | -30 | -25.0 ± 5.0 |" and len(lines) == 4
    assert report.parts(tmp_path).splitlines()[2:3] == ["| mixed steps | 1 | 4 | -20 | -30 | -25.0 ± 5.0 |"]
    for student in (tmp_path / name / "export" / "mixed.safetensors" for name in ("mixed/seed-1", "mixed/seed-2")):
        student.parent.mkdir()
        student.touch()
    assert runner.existing_students(tmp_path) == {"mixed": tmp_path / "mixed/seed-1/export/mixed.safetensors"}
    report.plot(tmp_path, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 5000


def test_the_page_and_the_log_show_the_tables_of_the_recorded_scores():
    assert (RESULTS / "overview.md").read_text() == report.overview(RESULTS) + "\n"
    assert (RESULTS / "table.md").read_text() == report.table(RESULTS) + "\n"
    assert (RESULTS / "short.md").read_text() == report.table(RESULTS, short=True) + "\n"
    assert (RESULTS / "paired.md").read_text() == report.paired(RESULTS) + "\n"
    assert (RESULTS / "parts.md").read_text() == report.parts(RESULTS) + "\n"
    page = (ROOT / "docs/study.md").read_text()
    assert (RESULTS / "overview.md").read_text() in page
    points = [line.split(" | ")[-1].strip(" |").lstrip("+") for line in report.parts(RESULTS).splitlines()[2:]]
    assert len(points) == 6 and all(point in " ".join(page.split()) for point in points)
    for shown in ("short.md", "paired.md", "parts.md"):
        assert (RESULTS / shown).read_text() in (RESULTS.parent / "LOG.md").read_text()


def test_an_arm_is_compared_with_one_that_differs_by_one_thing(tmp_path):
    for arm in ARMS:
        if arm.control:
            (control,) = arms_named([arm.control])
            own, other = (_settings(runner.recipe_of(a, 0, tmp_path)) for a in (arm, control))
            differing = {key for key in own if own[key] != other[key]}
            if differing & {"loss.semigroup", "loss.align"}:
                differing -= WEIGHT_OF
            assert len(differing) == 1 or arm.name in SEVERAL, (arm.name, differing)


# What weighs or places a loss that another key has switched on.
WEIGHT_OF = {"loss.semigroup_time_weight", "loss.align_start", "loss.align_block"}
# Scores take their teacher with them; a start is what was not trained.
SEVERAL = {"whole-scores", "start"}


def _settings(recipe):
    sections = {k: v for k, v in recipe.to_dict().items() if isinstance(v, dict) and k != "run"}
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def test_a_difference_has_the_error_of_its_seeds():
    found = over_seeds([1.0, 2.0, 6.0])
    assert (found.mean, found.error) == pytest.approx((3.0, (7 / 3) ** 0.5))
    assert two_sided_p(12.706, 1) == pytest.approx(0.05, abs=1e-4)
    assert two_sided_p(-4.303, 2) == pytest.approx(0.05, abs=1e-4)
    assert two_sided_p(2.776, 4) == pytest.approx(0.05, abs=1e-4)
    equal, single = over_seeds([2.0, 2.0, 2.0]), over_seeds([2.0])
    assert equal.error == 0 and all(x.p != x.p for x in (equal, single)), "no p without a spread"
    far, near = over_seeds([9.9, 10.0, 10.1]), over_seeds([2.0, 3.0, 4.0])
    assert [x.text(1) for x in (near, far, equal, single)] == ["+3.0 ± 0.6 *", "+10.0 ± 0.1 *", "+2.0 ± 0.0", "+2.0"]
    text = verdict([("a", far), ("b", near), ("c", equal), ("d", single)])
    assert text == (
        "4 comparisons. \\* p < 0.05: 2, where chance alone gives 0.2. After Bonferroni's correction (p < 0.0125): a."
    )


def test_seeds_with_another_initial_student_are_in_no_difference():
    row = {"scores": {"4 / full / 21": {"passed": 0.5}}}
    arms = {name: [{**row, "seed": s} for s in range(3)] for name in ("fixed", "fixed-long", "mixed")}
    assert list(report.differences(arms, "mixed", "fixed", "4 / full / 21")) == [0, 1, 2]
    assert list(report.differences(arms, "fixed-long", "fixed", "4 / full / 21")) == [0, 2]


@pytest.mark.slow
def test_an_arm_is_trained_and_scored_once(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "LONG_CLIP_FRAMES", 24)
    small = [
        "optimisation.updates=1",
        "optimisation.batch=4",
        "optimisation.micro_batch=4",
        SHIPPED,
        "optimisation.compile=false",
    ]
    for name in ("dmd4", "mixed-sc"):
        (arm,) = arms_named([name])
        first = runner.run_arm(arm, 0, tmp_path, small, prompts=1)
        assert first["defect"]["euler"] > 0
        monkeypatch.setattr(runner, "distill", lambda *_: pytest.fail("trained again"))
        assert runner.run_arm(arm, 0, tmp_path, small, prompts=1) == first
        monkeypatch.undo()
        monkeypatch.setattr(scores, "LONG_CLIP_FRAMES", 24)
    shown = runner.table(tmp_path)
    assert shown.count("\n") == 1 + 2 * (2 + 8) and "| mixed steps and SC | 2 / sink+window / 24 |" in shown
    second = {**json.loads((tmp_path / "dmd4" / "seed-0" / runner.SCORES).read_text()), "seed": 1}
    (tmp_path / "dmd4" / "seed-1").mkdir()
    (tmp_path / "dmd4" / "seed-1" / runner.SCORES).write_text(json.dumps(second))
    assert "±" in runner.table(tmp_path)
