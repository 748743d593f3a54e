"""Schedules of the learning rate."""

import pytest

from tests.helpers import tiny_recipes
from train.config.recipe import Optimisation, RecipeError
from train.config.validation import check_settings
from train.methods.learning_rate import rate_factor
from train.methods.sc_dmd import SCDMDTrainer


def factors(**settings):
    opt = Optimisation(**settings)
    return [rate_factor(opt, update) for update in range(opt.updates)]


def test_constant_after_warmup():
    assert factors(updates=5) == [1] * 5
    assert factors(updates=5, warmup=4) == [0.25, 0.5, 0.75, 1, 1]


def test_a_cosine_falls_from_one_to_its_end():
    assert factors(updates=5, schedule="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    warm = factors(updates=7, schedule="cosine", warmup=2, final_lr=0.1)
    assert warm == pytest.approx([0.5, 1, 1, 0.868198, 0.55, 0.231802, 0.1], abs=1e-6)
    assert factors(updates=3, schedule="cosine", warmup=2) == [0.5, 1, 1]


def test_both_optimizers_follow_the_schedule(tmp_path):
    settings = dict(updates=5, schedule="cosine", lr=1e-3, critic_lr=2e-3, batch=2, critic_per_generator=1)
    trainer = SCDMDTrainer(tiny_recipes.recipe(tmp_path, optimisation=settings))
    trainer.update(2)
    rates = {name: learner.optimizer.param_groups[0]["lr"] for name, learner in trainer.learners.items()}
    assert rates == pytest.approx({"student": 5e-4, "critic": 1e-3})


@pytest.mark.parametrize(
    "settings, complaint",
    [
        (dict(schedule="cosine", warmup=2), "optimisation.warmup: found 2, expected less than the 2 updates"),
        (dict(final_lr=0.1), "optimisation.final_lr=0.1 has no effect without schedule=cosine"),
    ],
)
def test_schedules_that_cannot_be_are_refused(tmp_path, settings, complaint):
    with pytest.raises(RecipeError, match=complaint):
        check_settings(tiny_recipes.recipe(tmp_path, optimisation=settings))
