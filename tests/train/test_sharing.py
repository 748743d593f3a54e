"""Reused and recomputed activations change no bit: the alignment's reference, activation checkpointing."""

from dataclasses import replace

import pytest
import torch

from salt.conditioning import Conditioning
from salt.models.causal_model import CausalModel
from salt.schedule import Schedule
from tests.helpers import tiny_recipes
from train.distributed.activation_checkpointing import recompute
from train.losses import linear_mmd, rbf_mmd, token_relation_distance
from train.methods import sc_dmd_losses
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout import reference_rollout
from train.rollout.gradient_rollout import rollout_with_grad
from train.rollout.random_draws import UpdateDraws
from train.rollout.reference_rollout import rollout_reference

TEXT = Conditioning(torch.randn(1, 5, 4096, generator=torch.Generator().manual_seed(1)))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def disable_reuse(monkeypatch):
    """From here on, references reuse nothing of the student's rollout."""
    monkeypatch.setattr(reference_rollout, "FirstFlowKnown", lambda model, first: CausalModel(model.student))


def count_calls(model):
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("nfe", "exit_index"), [(2, 1), (4, 1), (4, 3)])
def test_a_reference_that_reuses_the_rollout_is_unchanged(tmp_path, aligned, nfe, exit_index, monkeypatch):
    recipe = tiny_recipes.recipe(tmp_path, loss=dict(noise_aligned=aligned), rollout=dict(frames=9))
    student, draws = tiny_recipes.model(3), UpdateDraws(Schedule.of(nfe), exit_index, None, 3.0)
    result = rollout_with_grad(student, TEXT, recipe, draws, [1], gradient=True)
    calls = count_calls(student)
    shared = rollout_reference(student, TEXT, recipe, draws, result, [2])
    steps = 2 * exit_index + 1
    # Three blocks, two context passes (the last block has none), and one evaluation reused from the student.
    assert calls == [False] * (3 * steps + 2 - 1)
    disable_reuse(monkeypatch)
    assert torch.equal(rollout_reference(student, TEXT, recipe, draws, result, [2]), shared)
    assert len(calls) == 2 * (3 * steps + 2) - 1


def test_reuse_changes_neither_loss_nor_gradient(tmp_path, monkeypatch):
    trainer = SCDMDTrainer(tiny_recipes.recipe(tmp_path, loss=dict(align_distance="mmd")))
    batch, draws = trainer.prompts.batch(0, range(2), "generator"), UpdateDraws(Schedule.of(4), 2, None, 3.0)

    def compute():
        loss, parts = trainer.generator_loss(batch, draws, 0)
        assert parts["align"] > 0
        return parts, gradients(trainer.student.model.model, loss)

    parts, shared = compute()
    disable_reuse(monkeypatch)
    again, own = compute()
    assert again == parts and all(torch.equal(own[n], g) for n, g in shared.items())


@pytest.mark.parametrize("distance", [token_relation_distance, linear_mmd, rbf_mmd])
def test_a_clips_distance_to_itself_is_zero(distance):
    features = torch.randn(2, 12, 8, requires_grad=True)
    value = distance(features, features.detach(), *([3] if distance is token_relation_distance else []))
    value.backward()
    assert value.abs() < 1e-6 and features.grad.norm() < 1e-6


def test_an_exit_at_the_first_step_has_zero_alignment(tmp_path, monkeypatch):
    """The reference exits at the same noise, so it is the clip itself, and is not rolled out."""
    recipe = tiny_recipes.recipe(tmp_path, loss=dict(noise_aligned=False))
    student, draws = tiny_recipes.model(3), UpdateDraws(Schedule.of(4), 0, None, 3.0)
    result = rollout_with_grad(student, TEXT, recipe, draws, [1], gradient=True)
    assert torch.equal(rollout_reference(student, TEXT, recipe, draws, result, [2]), result.x0)
    monkeypatch.setattr(sc_dmd_losses, "rollout_reference", None)
    trainer = SCDMDTrainer(recipe)
    batch = trainer.prompts.batch(0, range(2), "generator")
    loss, parts = trainer.generator_loss(batch, draws, 0)
    without = replace(recipe, loss=replace(recipe.loss, align="none"))
    trainer.recipe = without
    assert parts["align"] == 0.0 and torch.equal(trainer.generator_loss(batch, draws, 0)[0], loss)


@pytest.mark.parametrize("keep", ["input", "attention", "products"])
def test_saved_activations_change_no_gradient(tmp_path, keep):
    recipe = tiny_recipes.recipe(tmp_path, loss=dict(align="none"), rollout=dict(memory="sink:1,window:5", frames=9))
    student, draws = tiny_recipes.model(3), UpdateDraws(Schedule.of(4), 1, None, 3.0)

    def compute():
        return gradients(
            student, rollout_with_grad(student, TEXT, recipe, draws, [1], gradient=True).x0.square().mean()
        )

    expected = compute()
    recompute(student, keep)
    found = compute()
    assert expected.keys() == found.keys() and all(torch.equal(found[n], g) for n, g in expected.items())


def test_compiled_blocks_save_their_input_alone(tmp_path):
    assert tiny_recipes.recipe(tmp_path).saved_activations == "attention"
    assert (
        tiny_recipes.recipe(tmp_path, optimisation=dict(compile=True), models=dict(keep="products")).saved_activations
        == "input"
    )
