"""Rewards by name, and the DMD loss that they weigh."""

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tiny_recipes
from tests.helpers.resumed_run import check_resume
from tests.helpers.stage_recipes import reward_recipe
from train import losses
from train.config.recipe import RecipeError
from train.config.validation import check_settings, missing_files
from train.memory_estimate.estimate import estimate
from train.methods.sc_dmd import SCDMDTrainer
from train.rewards import find_reward, reward_names
from train.rollout.random_draws import UpdateDraws
from train.shapes.world import SCENES, render


def test_the_loss_of_a_clip_counts_by_its_weight():
    x0 = torch.randn(2, 3, 4, 2, 2, requires_grad=True)
    gradient = torch.randn(2, 3, 4, 2, 2)
    weights = torch.tensor([3.0, 0.5])
    loss = losses.dmd_loss(x0, gradient, weights)
    each = [losses.dmd_loss(x0[i : i + 1], gradient[i : i + 1]) for i in (0, 1)]
    assert loss.item() == pytest.approx((3.0 * each[0].item() + 0.5 * each[1].item()) / 2, rel=1e-6)
    (found,) = torch.autograd.grad(loss, x0)
    torch.testing.assert_close(found, weights[:, None, None, None, None] * gradient / gradient.numel())
    equal = losses.dmd_loss(x0, gradient, torch.ones(2))
    assert equal.item() == pytest.approx(losses.dmd_loss(x0, gradient).item(), rel=1e-12)


def test_rewards_of_motion():
    """A drawn clip moves as its caption says; its first frame held still does not move at all."""
    scenes = [s for s in SCENES if s.speed == "fast"][:2]
    moving = render(scenes, 13, torch.Generator().manual_seed(0)).pixels
    still = moving[:, :, :1].expand_as(moving)
    captions = [scene.caption for scene in scenes]
    shapes, pixels = find_reward("shapes:motion"), find_reward("pixels:motion")
    torch.testing.assert_close(shapes(moving, captions), torch.zeros(2), atol=0.1, rtol=0)
    torch.testing.assert_close(shapes(still, captions), -torch.ones(2), atol=0.05, rtol=0)
    assert not pixels(still, captions).any() and (pixels(moving, captions) > 0.01).all()


@pytest.mark.parametrize("name", ["motion", "os:system", "shapes:parse_caption", "..config.loader:load_recipe"])
def test_only_functions_of_the_folder_are_rewards(tmp_path, name):
    assert reward_names() == ["pixels:motion", "shapes:motion"]
    recipe = tiny_recipes.recipe(tmp_path, loss=dict(reward=name))
    with pytest.raises(RecipeError, match=r"loss.reward: found '.*', expected one of pixels:motion, shapes:motion"):
        check_settings(recipe)


def test_a_reward_needs_the_autoencoder_and_a_dmd_loss(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path, loss=dict(reward="pixels:motion", semigroup=0.0, align="none"))
    assert [e.field for e in missing_files(recipe)] == ["models.vae"]
    with pytest.raises(RecipeError, match="loss.reward='pixels:motion' has no effect in the stage tf"):
        check_settings(replace(recipe, stage="tf"))


def test_clips_are_weighted_by_the_exponential_of_their_reward(tmp_path, monkeypatch):
    trainer = SCDMDTrainer(reward_recipe(tmp_path))
    draws = UpdateDraws(trainer.recipe.schedule(2), 1, None, 3.0)
    batch = trainer.prompts.batch(0, range(2), "generator")
    assert len(batch.prompts) == 2
    seen = []

    def reward(pixels, prompts):
        seen.append((tuple(pixels.shape), float(pixels.abs().max()), tuple(prompts)))
        return torch.tensor([[0.2, -0.4][len(seen) - 1]])

    monkeypatch.setattr(trainer.reward_weight, "reward", reward)
    weighted = []
    real = losses.dmd_loss
    monkeypatch.setattr(
        "train.methods.sc_dmd_losses.dmd_loss", lambda *given: weighted.append(given[2]) or real(*given)
    )
    _, parts = trainer.generator_loss(batch, draws, 0)
    assert [s for s, _, _ in seen] == [(1, 3, 9, 32, 32)] * 2 and all(largest <= 1 for _, largest, _ in seen)
    assert [prompt for _, _, (prompt,) in seen] == list(batch.prompts)
    torch.testing.assert_close(weighted[0], torch.tensor([math.exp(0.3), math.exp(-0.6)]).double())
    assert parts["reward"].item() == pytest.approx(-0.1, abs=1e-6)


def test_a_resumed_run_continues_to_the_bit(tmp_path):
    recipe = reward_recipe(tmp_path)

    short = replace(recipe, optimisation=replace(recipe.optimisation, critic_per_generator=1, batch=2))
    check_resume(SCDMDTrainer, short, tmp_path, ("student", "critic", "ema"))


def test_the_estimate_counts_the_decoder(tmp_path):
    """Wan's autoencoder in float32, and its cache beside the pixels of a clip of 9 frames of 32x32."""
    found = estimate(reward_recipe(tmp_path))
    assert found.always["autoencoder"] == 4 * 126_900_000
    assert found.moments["reward"]["decoded clip"] == 4 * 3 * 9 * 32 * 32
    assert found.moments["reward"]["decoder"] == 4 * (2364 + 2305) * 32 * 32
