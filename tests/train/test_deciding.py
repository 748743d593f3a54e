"""The deciding experiment on SC: its start, SC at a share of DMD's gradient, distances to drawn clips, its tables."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny_recipes
from train.evaluation.sampling import BLOCK_GUIDANCE
from train.experiments.ablation import deciding, runner
from train.experiments.ablation.arms import arms_named
from train.experiments.ablation.curved_start import guided_flow_loss
from train.experiments.ablation.deciding_report import deciding_tables, records
from train.experiments.ablation.scaled_semigroup import ScaledSemigroupTrainer
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout.random_draws import draw_update
from train.shapes.drawn_distance import drawn_distance
from train.shapes.world import Scene, render

RESULTS = Path(__file__).parents[2] / "train/experiments/ablation/results"


def gradient(trainer, update):
    batch, draws = (
        trainer.prompts.batch(update, range(2), "generator"),
        draw_update(trainer.recipe, update, "generator"),
    )
    model = trainer.student.model.model
    model.zero_grad()
    loss, parts = trainer.generator_loss(batch, draws, update)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), parts


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_the_semigroup_gradient_is_a_share_of_dmds(tmp_path, share):
    loss = dict(semigroup=1.0, semigroup_time_weight=False, align="none")
    sections = dict(models=dict(checkpointing=False), rollout=dict(frames=3, share={8: 1.0}))
    recipe = tiny_recipes.recipe(tmp_path, loss=loss, **sections)
    alone = tiny_recipes.recipe(tmp_path, loss={**loss, "semigroup": 0.0}, **sections)
    scaled, dmd = ScaledSemigroupTrainer(recipe, "single", share), SCDMDTrainer(alone)
    with_semigroup = 0
    for update in range(4):
        (both, parts), (own, _) = gradient(scaled, update), gradient(dmd, update)
        expected = share if "semigroup" in parts else 0.0
        with_semigroup += "semigroup" in parts
        assert float((both - own).norm() / own.norm()) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert with_semigroup


def test_the_start_learns_the_teachers_guided_flow():
    teacher, clean = tiny_recipes.model(2), torch.randn(2, 16, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 4, 4096, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def loss(words):
        return float(guided_flow_loss(teacher, teacher, clean, words, [3, 3], torch.Generator().manual_seed(3)))

    assert loss(torch.zeros_like(text)) == 0, "guidance between equal words changes nothing"
    flows = []

    class Kept:
        block_causal = staticmethod(teacher.block_causal)

        def __call__(self, *inputs, **others):
            flows.append(teacher(*inputs, **others))
            return flows[-1]

    with torch.no_grad():
        guided_flow_loss(teacher, Kept(), clean, text, [3, 3], torch.Generator().manual_seed(3))
    uncond, cond = (flow[0][:, :, -6:] for flow in flows)
    assert loss(text) == pytest.approx(float(((BLOCK_GUIDANCE - 1) * (cond - uncond)).square().mean()), rel=1e-4)


def test_the_distance_to_the_drawn_clip():
    scene = Scene("fast", "red", "square", "right")
    (clip,) = render([scene], 21, torch.Generator().manual_seed(0)).pixels
    assert drawn_distance(clip, scene) < 0.01
    shifted = clip.roll((7, 50), dims=(2, 3))  # another place and time of its start, over the torus' edge
    assert drawn_distance(shifted, scene) < 0.1
    assert drawn_distance(torch.zeros_like(clip), scene) == pytest.approx(1, abs=0.01), "no object"
    wrong = {"direction": "left", "color": "cyan", "shape": "circle", "speed": "slow"}
    for word, value in wrong.items():
        assert drawn_distance(clip, Scene(**{**vars(scene), word: value})) > 0.09, word
    half = clip * 0.5 + 0.5 * render([scene], 21, torch.Generator().manual_seed(0)).pixels[0].mean()
    assert 0.1 < drawn_distance(half, scene) < 0.5, "fading is in between"


def record(arm, seed, passed, distance, defect):
    clips = {"passed": passed, "distance": distance}
    return {
        "arm": arm, "seed": seed, "start": "abc", "recipe": "def",
        "clips": {"4": clips, "2": clips}, "defect": {"euler": defect, "sampler": 10 * defect},
    }  # fmt: skip


def test_tables_compare_an_arm_with_its_control_seed_by_seed(tmp_path):
    assert deciding_tables(tmp_path) == ""
    (tmp_path / "deciding").mkdir()
    rows = [
        record("fixed-8", 0, "1100", [0.1, 0.3], 0.01), record("fixed-8", 1, "1110", [0.2, 0.2], 0.01),
        record("fixed-8-sc-30", 0, "1110", [0.1, 0.1], 0.008), record("fixed-8-sc-30", 1, "1111", [0.1, 0.1], 0.006),
        record("fixed-8-sc-30", 2, "0000", [0.9, 0.9], 0.006),
    ]  # fmt: skip
    for row in rows:
        path = deciding.record_path(tmp_path, arms_named([row["arm"]])[0], row["seed"])
        path.write_text(json.dumps(row))
    lines = deciding_tables(tmp_path).splitlines()
    assert lines[2].startswith("| `fixed-8`: fixed 8 steps | 62.5 (50.0, 75.0) | 62.5 (50.0, 75.0) | 20.0 (20.0, 20.0)")
    cells = "+25.0 ± 0.0 | +25.0 ± 0.0 | -10.0 ± 0.0 | -10.0 ± 0.0 | -30 ± 10 | -300 ± 100 |"
    assert lines[7] == f"| `fixed-8-sc-30` less `fixed-8` | 2 | {cells}"
    assert lines[-1].startswith("6 comparisons.")


def test_recorded_students_begin_with_one_start_and_are_the_arms(tmp_path):
    found = records(RESULTS)
    every = [r for by_seed in found.values() for r in by_seed.values()]
    assert every and len({r["start"] for r in every}) == 1
    for r in every:
        (arm,) = arms_named([r["arm"]])
        assert runner.recipe_hash(runner.recipe_of(arm, 0, tmp_path)) == r["recipe"], arm.name
        counts = {len(clips[name]) for clips in r["clips"].values() for name in (*deciding.VERDICTS, "distance")}
        assert counts == {deciding.NOISE_LISTS * len(deciding.PROMPTS) // deciding.PARTS}
    page, log = (RESULTS.parents[3] / "docs/study.md").read_text(), (RESULTS.parent / "LOG.md").read_text()
    tables = deciding_tables(RESULTS)
    assert (RESULTS / "deciding.md").read_text() == tables + "\n"
    assert tables in log and tables.split("\n\n", 1)[1] in page


def test_an_arm_is_recorded_once_and_seeds_are_the_outer_loop(tmp_path, monkeypatch):
    student = tmp_path / "student.safetensors"
    student.write_bytes(b"weights")
    start = tmp_path / "start"
    monkeypatch.setattr(deciding, "CURVED_START", start)

    def train_start(folder, teacher):
        (folder / "final").mkdir(parents=True)
        (folder / "final/diffusion_pytorch_model.safetensors").write_bytes(b"start")

    trained = []

    def distill(recipe, mode, make):
        trained.append((recipe.name, recipe.run.seed, getattr(make, "keywords", {}).get("share")))
        return student

    monkeypatch.setattr(deciding, "train_curved_start", train_start)
    monkeypatch.setattr(deciding, "distill", distill)
    clips = {count: {"passed": "10", "distance": [0.1, 0.2]} for count in ("4", "2")}
    scores = {"defect": {"euler": 0.01, "sampler": 0.1}, "clips": clips}
    monkeypatch.setattr(deciding, "score_student", lambda path, vae: scores)
    arguments = type("A", (), dict(seeds=[0, 1], arms=["fixed-8", "fixed-8-sc-30"], out=tmp_path, overrides=[]))
    for _ in range(2):
        runner.run(arguments)
    assert trained == [(name, s, share) for s in (0, 1) for name, share in (("fixed-8", None), ("fixed-8-sc-30", 0.3))]
    found = json.loads((tmp_path / "deciding/fixed-8-seed-1.json").read_text())
    assert len(found["start"]) == len(found["student"]) == 64 and found["start"] != found["student"]
    assert math.isclose(found["clips"]["2"]["distance"][1], 0.2) and (tmp_path / "deciding.md").exists()
