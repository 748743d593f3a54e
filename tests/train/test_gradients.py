"""`python -m train gradients`: norms of each loss by exit step, against gradients taken one at a time."""

import json
import math

import pytest
import torch

from tests.helpers import tiny_recipes
from train.__main__ import main
from train.config.recipe import RecipeError
from train.gradients.measure import Row, all_exits, measure_gradients
from train.gradients.report import table
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.sc_dmd_losses import alignment_term, dmd_term, semigroup_term


def small(folder, **sections):
    rollout = dict(frames=3, share={8: 0.5, 2: 0.5})
    return tiny_recipes.recipe(
        folder, rollout=rollout, loss=dict(semigroup=0.2, align="release", align_margin=0.0), **sections
    )


def test_norms_are_those_of_each_loss_alone(tmp_path):
    recipe = small(tmp_path)
    rows, done = measure_gradients(recipe, range(1), 1)
    every = [(8, i) for i in range(8)] + [(2, 0), (2, 1)]
    assert done == 0 and [(r.steps, r.exit_index) for r in rows] == every
    by_exit = {(r.steps, r.exit_index): r.norms for r in rows}
    trainer = SCDMDTrainer(recipe)
    batch = trainer.prompts.batch(0, range(2), "generator")
    for draws in all_exits(recipe, 0):
        if (draws.schedule.nfe, draws.exit_index) not in ((8, 2), (2, 1)):
            continue
        found = by_exit[draws.schedule.nfe, draws.exit_index]
        for term in found:
            model = trainer.student.model.model
            model.zero_grad()
            result = trainer.rollout(model, batch, draws, 0, "generator")
            if term == "dmd":
                loss = dmd_term(trainer.critic_score, trainer.teacher, result.x0, batch, recipe, draws, 0)
            elif term == "semigroup":
                loss = semigroup_term(result, recipe, draws)[0]
            else:
                loss = alignment_term(model, trainer.teacher, result, batch, recipe, draws, 0)[0]
            loss.backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
            assert found[term] == pytest.approx([norm], rel=1e-4), (draws.exit_index, term)
        assert set(found) == ({"dmd", "semigroup"} if draws.schedule.nfe == 8 else {"dmd", "align"})
    assert by_exit[8, 0]["semigroup"] == [0.0] and "semigroup" not in by_exit[8, 7]
    assert "align" not in by_exit[2, 0] and by_exit[2, 1]["align"][0] > 0


def test_seeds_differ_and_the_newest_checkpoint_is_measured(tmp_path):
    recipe = small(tmp_path, optimisation=dict(updates=1, batch=2, critic_per_generator=1))
    SCDMDTrainer(recipe).run()
    rows, done = measure_gradients(recipe, range(2), 1)
    assert done == 1 and all(len(set(row.norms["dmd"])) == 2 for row in rows)


def test_the_table_says_what_it_is_a_mean_of(tmp_path):
    rows = [
        Row(8, 2, {"dmd": [1.0, 2.0], "semigroup": [0.01, 0.06]}),
        Row(2, 1, {"dmd": [4.0, 4.0], "align": [0.0, 0.0]}),
    ]
    text = table(small(tmp_path), rows, 7, 2, 1)
    assert "after 7 updates: 2 seeds x 1 batches of 2 clips" in text
    assert "| 8 | 2 | 938 | 1.5 | 2 +- 1.4 % |  |" in text and "| 2 | 1 | 833 | 4 |  | 0 +- 0 % |" in text


def test_the_command_and_its_file(tmp_path, capsys, monkeypatch):
    rows = [Row(2, 1, {"dmd": [4.0]})]
    monkeypatch.setattr("train.gradients.measure.measure_gradients", lambda recipe, seeds, batches: (rows, 0))
    out = tmp_path / "norms.json"
    assert main(["gradients", "tiny_sc", "--seeds", "1", "--batches", "1", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["rows"][0]["norms"] == {"dmd": [4.0]}
    assert "tiny_sc after 0 updates" in capsys.readouterr().out
    assert main(["gradients", "tiny_sc", "--batches", "0"]) == 2
    assert "--batches: found 0, expected 1 or more" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="recipe: found the stage tf, expected distillation of whole clips"):
        measure_gradients(small(tmp_path, stage="tf"), range(1), 1)
    windows = tiny_recipes.recipe(
        tmp_path, rollout=dict(frames=12, window=6, long_tuning="window"), loss=dict(align="none")
    )
    with pytest.raises(RecipeError, match="recipe: found rollout.long_tuning=window, expected distillation of whole"):
        measure_gradients(windows, range(1), 1)
    assert main(["gradients", "tiny_salt", "loss.align_block=99"]) == 2
    assert "loss.align_block: found 99, expected 0 to " in capsys.readouterr().err


def test_gradients_are_none_without_a_path():
    from train.gradients.measure import gradient_norm

    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    other = torch.nn.Parameter(torch.ones(1))
    assert gradient_norm((weight**2).sum() / 2, [weight, other]) == 5.0
    assert gradient_norm(torch.zeros(()), [weight]) == 0.0
