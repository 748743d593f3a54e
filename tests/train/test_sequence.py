"""Clips that several processes compute together in training: equal to one process, or refused."""

import csv
from dataclasses import replace

import pytest
import torch
from torch.torch_version import TorchVersion

from tests.helpers import sequence_processes, tiny_recipes
from tests.helpers.head_processes import free_port
from train.config.loader import load_recipe
from train.config.recipe import RecipeError
from train.config.validation import check_settings
from train.distributed.launch import check_mode
from train.memory_estimate.estimate import estimate
from train.methods.sc_dmd import SCDMDTrainer
from train.monitoring.metrics_logger import MEASURED

# Weights that differ by half a unit in the last place change a gradient here by up to 8e-4 of its norm, in one process.
GRADIENTS = 2e-3


def curve(folder):
    with (folder / "losses.csv").open() as file:
        return {
            (row["step"], row["name"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["name"] not in MEASURED
        }


@pytest.mark.slow
def test_two_processes_on_one_clip_equal_one(tmp_path):
    """Forward of the teacher, losses and gradients of critic and student, and two updates, resumed between them."""
    alone = SCDMDTrainer(sequence_processes.recipe(tmp_path, "alone", 0))
    expected = sequence_processes.measured(alone)
    modes = ("ddp", "fsdp") if torch.__version__ >= TorchVersion("2.8") else ("ddp",)
    arguments = (2, free_port(), tmp_path, modes)
    torch.multiprocessing.start_processes(sequence_processes.process, arguments, nprocs=2, start_method="spawn")
    for mode in modes:
        found = torch.load(tmp_path / f"{mode}.pt", weights_only=True)
        assert found.keys() == expected.keys() and len(found) > 100
        for name, value in found.items():
            is_gradient = name.endswith(("weight", "bias", "scale_shift_table"))
            limit = GRADIENTS if is_gradient else 1e-5
            assert float((value - expected[name]).norm()) < limit * float(expected[name].norm()) + 1e-7, (mode, name)
    SCDMDTrainer(sequence_processes.recipe(tmp_path, "whole", 0)).run()
    one, two = curve(tmp_path / "whole"), curve(tmp_path / "resumed")
    assert one.keys() == two.keys() and {step for step, _ in one} == {"1", "2"}
    assert all(two[key] == pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in one.items())


def sequence(recipe, size, **optimisation):
    return replace(recipe, optimisation=replace(recipe.optimisation, sequence=size, **optimisation))


def test_what_cannot_be_computed_together_is_refused(tmp_path, monkeypatch):
    recipe = tiny_recipes.recipe(tmp_path)
    with pytest.raises(RecipeError, match="optimisation.sequence=2 has no effect in one process"):
        check_mode(sequence(recipe, 2), "single")
    monkeypatch.setattr("train.distributed.launch.process_count", lambda: 8)
    check_mode(sequence(recipe, 2), "ddp")
    wrong = {
        "optimisation.sequence: found 3, expected a divisor of the 8 processes": sequence(recipe, 3),
        "optimisation.sequence: found 4 for 2 heads .student., expected a number that divides them: 2": sequence(
            recipe, 4
        ),
        "optimisation.compile=True is not supported by optimisation.sequence": sequence(recipe, 2, compile=True),
        "loss.adversarial=0.1 is not supported": replace(
            sequence(recipe, 2), loss=replace(recipe.loss, adversarial=0.1)
        ),
    }
    for message, settings in wrong.items():
        with pytest.raises(RecipeError, match=message):
            check_mode(settings, "ddp")
    check_settings(sequence(recipe, 2, batch=4, micro_batch=1), 8)
    with pytest.raises(RecipeError, match="optimisation.batch: .* micro_batch 2 x 4 groups of 2 processes"):
        check_settings(sequence(recipe, 2, batch=4, micro_batch=2), 8)


@pytest.mark.slow
def test_the_estimate_divides_activations_and_memory():
    keys = ["models.teacher=Wan2.1-T2V-14B", "rollout.frames=6"]
    recipe = load_recipe("self_forcing", keys)
    one, four = (estimate(sequence(recipe, size), 8, "fsdp") for size in (0, 4))
    kept = [found.moments["critic's backward"]["activations until backward"] for found in (one, four)]
    assert 3.1 < kept[0] / kept[1] < 4.2
    assert four.moments["rollout"]["KV memory"] * 4 == one.moments["rollout"]["KV memory"]
    assert four.always["teacher"] == one.always["teacher"]
