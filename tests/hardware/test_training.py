"""One training update: nothing waits for the device between the first forward and backward.

Forwards at true width, on the fake device, without autocast, which turns itself off where torch has no CUDA. Backward
cannot run there (`test_backward.py`).
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks.ledger.cases import SIZES, student
from benchmarks.ledger.counting import Ledger
from benchmarks.ledger.fake_device import DEVICE
from salt.conditioning import Conditioning
from tests.helpers.ledger_budgets import check_budget
from train.config.recipe import InitialStages, Losses, Recipe, Rollouts
from train.data.batch import Batch
from train.data.clip_dataset import Clip
from train.losses.semigroup import grid_triples
from train.methods.clip_trainer import ClipTrainer
from train.methods.ode_regression import ODERegressionTrainer
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.sc_dmd_losses import critic_term
from train.methods.teacher_forcing import TeacherForcingTrainer
from train.monitoring.update_flops import UpdateFlops, added
from train.rollout.random_draws import UpdateDraws

SMALL = Rollouts(frames=6, memory="sink:3,window:6")  # two blocks at 832x480

TRIPLE = grid_triples(Recipe().schedule(8), 3)[0][1][0]  # made of numbers, so not on the fake device


def text():
    return Conditioning(torch.zeros(1, 512, 4096, device=DEVICE))


def trainer_of(recipe):
    """The losses of a trainer, without its optimizers and processes."""
    config = SIZES["1.3B"]
    models = {name: student(config, 2, torch.float32) for name in ("student", "teacher", "critic")}
    models["student"].requires_grad_(True)
    trainer = SCDMDTrainer.__new__(SCDMDTrainer)
    trainer.recipe, trainer.teacher, trainer.critic_score = recipe, models["teacher"], models["critic"]
    trainer.reward_weight = None
    return trainer, models


# Launches and GB of the losses' forwards at the two layers that are run, in float32.
BUDGETS = {"dmd": (781, 51.5), "semigroup": (1683, 98.9), "alignment": (1926, 122.3), "critic": (151, 12.24)}
CLIP_BUDGETS = {"ode": (162, 13.29), "tf": (196, 26.01)}


@pytest.mark.parametrize("terms", ["dmd", "semigroup", "alignment"])
def test_generator_loss_does_not_wait(device, terms):
    recipe = replace(Recipe(), rollout=SMALL, loss=Losses(semigroup=1.0, align="paper", align_start=0, align_block=1))
    schedule = recipe.schedule({"dmd": 4, "semigroup": 8, "alignment": 2}[terms])
    triple = TRIPLE if terms == "semigroup" else None
    exit_index = {"dmd": 0, "semigroup": 3, "alignment": 1}[terms]
    trainer, models = trainer_of(recipe)
    draws, batch = UpdateDraws(schedule, exit_index, triple, 3.0), Batch(range(1), text(), text())
    with Ledger() as ledger:
        loss, parts = trainer.generator_terms(models["student"], batch, draws, 0)
        assert loss.requires_grad and terms.replace("alignment", "align") in parts
        assert not ledger.phase.waits
        check_budget(ledger.phase.costs.launches, ledger.phase.costs.bytes, BUDGETS[terms])
        estimated = operations(recipe, models)
        phases = added(estimated.generator(draws), estimated.alignment(draws) if terms == "alignment" else {})
        assert forward(phases) == pytest.approx(ledger.phase.costs.flops, rel=0.1)


def operations(recipe, models):
    return UpdateFlops(recipe, {name: model.config for name, model in models.items()})


def forward(phases):
    """Estimated operations of forwards alone, which is what runs here; a backward is twice as many."""
    return sum(work.forward for work in phases.values())


def test_critic_loss_does_not_wait(device):
    recipe = replace(Recipe(), rollout=SMALL)
    _, models = trainer_of(recipe)
    batch = Batch(range(1), text(), text())
    with Ledger() as ledger:
        critic_term(models["critic"], torch.zeros(1, 16, 6, 60, 104, device=device), batch, recipe, 0)
        assert not ledger.phase.waits
        check_budget(ledger.phase.costs.launches, ledger.phase.costs.bytes, BUDGETS["critic"])
        estimated = operations(recipe, models).score("critic", "weights")
        assert estimated.forward == pytest.approx(ledger.phase.costs.flops, rel=0.1)
        assert estimated.backward == pytest.approx(2 * estimated.forward)


@pytest.mark.parametrize("stage", CLIP_BUDGETS)
def test_loss_on_clips_does_not_wait(device, stage):
    """Of the stages before distillation, reading of the clips included."""
    recipe = replace(Recipe(), stage=stage, rollout=SMALL, start=InitialStages(history_noise=0.1, prompt_dropout=0.1))
    _, models = trainer_of(recipe)
    clip = torch.zeros(16, 6, 60, 104)
    lines = SimpleNamespace(line=lambda update, sample, role: sample)
    trainer = SimpleNamespace(recipe=recipe, device=device, prompts=lines, student=SimpleNamespace())
    trainer.student.model = SimpleNamespace(model=models["student"])
    trainer.clips = lambda line, channels: Clip(clip, clip.repeat(4, 1, 1, 1, 1) if stage == "ode" else None)
    trainer.read_clips = partial(ClipTrainer.read_clips, trainer)
    loss_of = {"ode": ODERegressionTrainer, "tf": TeacherForcingTrainer}[stage].loss
    batch = Batch(range(1), text(), text())
    with Ledger() as ledger:
        assert loss_of(trainer, models["student"], batch, 0).requires_grad
        assert not ledger.phase.waits
        check_budget(ledger.phase.costs.launches, ledger.phase.costs.bytes, CLIP_BUDGETS[stage])
        estimated = operations(recipe, models).clip_stage()
        assert forward(estimated) == pytest.approx(ledger.phase.costs.flops, rel=0.1)
