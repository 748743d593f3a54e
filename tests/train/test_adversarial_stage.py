"""A discriminator on real clips in the recipe trainer: its pairs, who learns from what, and resuming to the bit."""

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tiny_recipes
from tests.helpers.resumed_run import check_resume
from tests.helpers.stage_recipes import CAPTIONS, adversarial_recipe
from train.adversarial.discriminator import HEAD, add_head, logits, read_blocks
from train.config.loader import load_recipe
from train.config.recipe import RecipeError
from train.config.validation import check_settings, missing_files
from train.experiments.tiny.discriminator import Discriminator
from train.memory_estimate.estimate import estimate
from train.methods.adversarial import AdversarialTrainer
from train.rollout.random_draws import UpdateDraws

DRAWS = UpdateDraws(load_recipe("tiny").schedule(2), 1, None, 3.0)


def test_both_discriminators_compute_the_same():
    """The recipe trainer's forward and the compiled one of salt-tiny's experiment, with one set of weights."""
    assert read_blocks(4) == [1, 2, 3] and read_blocks(2) == [1] and read_blocks(30) == [7, 14, 21, 29]
    body = add_head(tiny_recipes.model(0, num_layers=4), seed=0)
    head = body.get_submodule(HEAD)
    torch.nn.init.normal_(head.head[2].weight)
    other = Discriminator(body)
    other.head.load_state_dict(head.state_dict())
    clips, text = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 5, 4096)
    sigma = torch.tensor([0.1, 0.4])
    found = logits(body, clips, sigma, text)
    assert found.shape == (2, 3) and found.abs().max() > 0.01
    torch.testing.assert_close(found, other(clips, sigma, text), atol=1e-4, rtol=1e-4)


def test_pairs_have_one_caption_and_one_noise_level(tmp_path):
    trainer = AdversarialTrainer(adversarial_recipe(tmp_path))
    batch = trainer.prompts.batch(0, range(4), "critic")
    fake = torch.full((4, 16, 3, 4, 4), 9.0)
    pairs = trainer.noisy_pairs(fake, batch, 0, "critic")
    sigma = pairs.sigma[:, None, None, None, None]
    for i, caption in enumerate(batch.prompts):
        value = (1 - pairs.sigma[i]) * CAPTIONS.index(caption)
        assert pairs.real[i].mean().item() == pytest.approx(value.item(), abs=0.15)
    assert (pairs.sigma <= 0.6).all() and len(pairs.sigma.unique()) == 4
    noise = (pairs.fake - (1 - sigma) * fake) / sigma
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert not torch.allclose(noise, (pairs.real - (1 - sigma) * pairs.real.mean((1, 2, 3, 4), keepdim=True)) / sigma)


def test_the_discriminator_learns_from_critic_updates_and_the_student_leaves_it_unchanged(tmp_path):
    trainer = AdversarialTrainer(adversarial_recipe(tmp_path))
    found = [trainer.update_critic(step, 1.0) for step in range(8)]
    assert found[0]["discriminator"] == pytest.approx(math.log(2), abs=1e-3) and found[-1]["discriminator"] < 0.5
    body = trainer.discriminator.model.model
    before = {name: p.detach().clone() for name, p in body.named_parameters()}
    values = trainer.update_generator(0)
    assert values["adversarial"] > math.log(2) and math.isfinite(values["dmd"])
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in body.named_parameters())


def test_the_clip_s_gradient_is_dmd_s_and_the_adversarial_one_in_the_recipe_s_ratio(tmp_path):
    recipe = adversarial_recipe(tmp_path, adversarial=3.0, adversarial_start=5)
    trainer = AdversarialTrainer(recipe)
    for step in range(3):
        trainer.update_critic(step, 1.0)
    batch = trainer.prompts.batch(0, range(2), "generator")
    gradients = {}
    for update in (4, 5):
        result = trainer.rollout(trainer.student.model.model, batch, DRAWS, 4, "generator")
        x0 = result.x0.detach().requires_grad_()
        loss, parts = trainer.distribution_loss(replace(result, x0=x0), batch, DRAWS, update)
        assert ("adversarial" in parts) == (update == 5)
        (gradients[update],) = torch.autograd.grad(loss, x0)
        dmd, _ = super(AdversarialTrainer, trainer).distribution_loss(replace(result, x0=x0), batch, DRAWS, update)
        (gradients["dmd", update],) = torch.autograd.grad(dmd, x0)
    torch.testing.assert_close(gradients[4], gradients["dmd", 4])
    rest = gradients[5] - gradients["dmd", 5]
    assert (rest.norm() / gradients["dmd", 5].norm()).item() == pytest.approx(3.0, rel=1e-3)


def test_a_resumed_run_continues_to_the_bit(tmp_path):
    parts = ("student", "critic", "discriminator", "ema")
    whole = check_resume(AdversarialTrainer, adversarial_recipe(tmp_path), tmp_path, parts)
    assert any(name.startswith(HEAD) for name in whole["discriminator"])


def test_what_the_discriminator_cannot_have_is_an_error(tmp_path):
    recipe = adversarial_recipe(tmp_path)
    check_settings(recipe)
    assert not missing_files(recipe)
    without = replace(recipe, data=replace(recipe.data, clips=""))
    assert [str(e) for e in missing_files(without)] == [
        "data.clips: found none, loss.adversarial needs a folder of clips"
    ]
    with pytest.raises(RecipeError, match="loss.adversarial=6.0 has no effect in the stage tf"):
        check_settings(replace(recipe, stage="tf"))
    with pytest.raises(RecipeError, match="loss.adversarial=6.0 is not supported by windows of longer clips"):
        check_settings(replace(recipe, rollout=replace(recipe.rollout, frames=9, window=3)))


def test_the_estimate_counts_the_discriminator(tmp_path):
    recipe = adversarial_recipe(tmp_path)
    found = estimate(recipe)
    assert found.always["discriminator, float32"] == found.always["critic, float32"]
    both, critic = (found.moments[f"{name}'s backward"] for name in ("discriminator", "critic"))
    assert both["activations until backward"] == 4 * critic["activations until backward"] > 0
