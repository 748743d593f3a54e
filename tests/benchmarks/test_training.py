"""The training benchmark runs on a CPU and returns the documented figures; times are not checked."""

import json
from dataclasses import replace

import pytest

from benchmarks import training
from benchmarks.training import LEVELS, SIZES, measure_training, typical_update
from train.config.recipe import Optimisation, Recipe, Rollouts
from train.rollout.random_draws import draw_update


def test_both_loops_are_measured_at_every_level(monkeypatch):
    config = dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=2, freq_dim=32)
    tiny = replace(SIZES["small"], config=config, rollout=Rollouts(frames=6, height=4, width=4), text_tokens=5)
    monkeypatch.setitem(training.SIZES, "tiny", tiny)
    results = measure_training("tiny", "cpu")
    assert json.loads(json.dumps(results)) == results
    assert set(results["cases"]) == {f"ours / {level}" for level in LEVELS} | {"plain / everything", "plain / input"}
    assert all(case["seconds"] > 0 and case["peak_mib"] > 0 for case in results["cases"].values())
    plain, ours = results["cases"]["plain / input"], results["cases"][f"ours / {results['default']}"]
    assert results["speedup"] == plain["seconds"] / ours["seconds"] <= results["speedup_best"]
    with pytest.raises(ValueError, match="device: found cuda, expected cpu"):
        measure_training("tiny", "cuda")


def test_a_typical_update_takes_the_average_number_of_steps():
    recipe = Recipe(optimisation=Optimisation(batch=1))
    update = typical_update(recipe)
    critics = [draw_update(recipe, 5 * update + i, "critic").exit_index for i in range(5)]
    assert sum(critics) + draw_update(recipe, update, "generator").exit_index == 6 * 1.5
