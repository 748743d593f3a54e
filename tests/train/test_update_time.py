"""The estimated time of an update: its operations by phase, over all draws, and the card that they run on."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from salt.errors import InputError
from tests.helpers import stage_recipes, tiny_recipes
from train.__main__ import main
from train.config.loader import load_recipe
from train.memory_estimate.report import forms, forms_table
from train.memory_estimate.time import Card, Transformer, update_phases, update_seconds
from train.monitoring.throughput import Throughput
from train.monitoring.update_flops import UpdateFlops, Work

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
SMALL = Transformer(num_attention_heads=2, num_layers=3, ffn_dim=512, in_channels=16, out_channels=16)
CONFIGS = dict.fromkeys(("student", "critic", "teacher", "discriminator"), SMALL)


def total(phases):
    return sum((work for work in phases.values()), Work())


@pytest.mark.parametrize(
    "name", ["self_forcing_salt", "longlive_windows", "longlive_streaming", "longlive2_i2v", "i2v_sc"]
)
def test_the_expected_update_is_the_mean_of_many(name):
    recipe = load_recipe(name, ["loss.align=none", "optimisation.critic_per_generator=1"])
    flops = UpdateFlops(recipe, CONFIGS)
    drawn = fmean(Throughput(recipe, CONFIGS, 1, None).flops(update) for update in range(400))
    assert total(flops.expected()).counted == pytest.approx(drawn, rel=0.05)


def test_operations_of_a_rollout_add_up(tmp_path):
    """Two blocks of three, against all that is before them: one evaluation of each is written down here."""
    recipe = tiny_recipes.recipe(tmp_path, rollout=dict(share={4: 1.0}), models=dict(checkpointing=False))
    flops = UpdateFlops(recipe, CONFIGS)
    first, second = (flops._forward("student", 3, seen).forward for seen in (3, 6))
    draws = flops._draws(4, 2)
    assert flops.rollout(draws, False).forward == pytest.approx(4 * first + 3 * second), "no one reads the last context"
    assert flops.rollout(draws, True).backward == pytest.approx(2 * (first + second))
    with_picture = stage_recipes.i2v_recipe(tmp_path, rollout=dict(share={4: 1.0}))
    alone, behind = (UpdateFlops(with_picture, CONFIGS)._forward("student", *x).forward for x in ((1, 1), (3, 4)))
    found = UpdateFlops(with_picture, CONFIGS).rollout(draws, False).forward
    last = UpdateFlops(with_picture, CONFIGS)._forward("student", 3, 7).forward
    assert found == pytest.approx(alone + 4 * behind + 3 * last), "a picture's latent goes through one context pass"


def test_what_is_trained_and_kept_decides_what_a_backward_costs(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    kept = {
        keep: UpdateFlops(replace(recipe, models=replace(recipe.models, keep=keep)), CONFIGS)._forward(
            "student", 3, 3, "weights"
        )
        for keep in ("input", "attention", "products")
    }
    assert kept["input"].recomputed == kept["input"].forward > kept["attention"].recomputed > 0
    assert kept["products"].recomputed == 0 and len({work.backward for work in kept.values()}) == 1
    adapted = replace(recipe, models=replace(recipe.models, lora_rank=4))
    lora = UpdateFlops(adapted, CONFIGS)._forward("student", 3, 3, "weights")
    assert lora.forward < lora.backward < kept["input"].backward == 2 * lora.forward
    assert UpdateFlops(adapted, CONFIGS)._forward("critic", 3, 3, "weights").backward == kept["input"].backward


def test_every_stage_has_its_models_work(tmp_path):
    cd = UpdateFlops(stage_recipes.cd_recipe(tmp_path), CONFIGS).clip_stage()
    one = cd["student"].forward
    assert cd["targets"].forward == 3 * one, "the guided teacher's two, and the averaged student's"
    adversarial = stage_recipes.adversarial_recipe(tmp_path)
    plain = replace(adversarial, loss=replace(adversarial.loss, adversarial=0.0))
    with_clips, without = (UpdateFlops(r, CONFIGS).expected() for r in (adversarial, plain))
    assert with_clips["critic"].total == pytest.approx(5 * without["critic"].total)
    salt = UpdateFlops(load_recipe("self_forcing_salt", ["loss.align_block=1"]), CONFIGS)
    found = salt.expected()
    assert set(found) == {"student's rollout", "scores", "alignment", "critic's rollouts", "critic"}
    aligned = salt.alignment(salt._draws(2, 1))["alignment"]  # a tenth of the updates: 2 steps, and the second exit
    assert found["alignment"].total == pytest.approx(0.1 * 64 * aligned.total)
    reference, features = salt.rollout(salt._draws(4, 2), False), salt.score("teacher")
    assert aligned.forward == pytest.approx(reference.forward + 2 * features.forward * 2 / 3)


def test_seconds_follow_from_the_card(capsys):
    recipe = load_recipe("self_forcing")
    one = update_seconds(recipe, 1, Card("H100", 0.4))
    assert one == pytest.approx(total(update_phases(recipe)).total / 989e12 / 0.4)
    assert update_seconds(recipe, 8, Card("A100", 0.2)) == pytest.approx(one / 8 * 989 / 312 * 2)
    # Self Forcing's README.md: 600 iterations, 120 updates of the student, in under 2 hours on 64 H100.
    assert 0.5 < 120 * one / 64 / 3600 < 2
    assert update_seconds(load_recipe("tiny"), 1, Card()) is None
    with pytest.raises(InputError, match="card: found 'GTX 1080', expected one of B200"):
        Card("GTX 1080")
    with pytest.raises(InputError, match="share: found 0, expected above 0 to 1"):
        Card("H100", 0.0)
    assert main(["estimate", "self_forcing", "--card", "abacus"]) == 2
    assert "--card: found 'abacus', expected one of" in capsys.readouterr().err


def test_forms_are_those_that_the_batch_divides_into():
    pair = forms(load_recipe("longlive2", ["optimisation.batch=2"]))
    assert [(f.processes, f.mode) for f in pair] == [(1, "single")] * 3
    found = forms(load_recipe("self_forcing_salt"))
    assert {f.mode for f in found} == {"single", "ddp", "fsdp"} and {f.processes for f in found} == {1, 8, 64}
    assert {f.recipe.optimisation.shard for f in found} == {0, 8}
    assert {f.recipe.optimisation.optimizer for f in found} == {"adamw", "8bit"}
    assert {f.recipe.models.lora_rank for f in found} == {0, 64}


@pytest.mark.slow
def test_the_table_of_the_documentation_is_the_command_s():
    table = r"estimate self_forcing_salt --forms`:\n\n((?:\|.*\n)+\nTimes: .*\n)"
    (written,) = re.findall(table, DOCS.read_text("utf-8"))
    assert written.strip() == forms_table(load_recipe("self_forcing_salt"), Card())
