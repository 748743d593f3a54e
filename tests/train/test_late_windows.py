"""Random windows of long clips: their place, their past, what carries loss, and resuming to the bit."""

from dataclasses import replace

import pytest
import torch

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.models.transformer_salt import SaltTransformer3DModel
from tests.helpers.resumed_run import check_resume
from tests.helpers.stage_recipes import windows_recipe
from train.config.recipe import RecipeError
from train.config.validation import check_settings
from train.methods.late_windows import LateWindowTrainer
from train.rollout.late_window import draw_start, rollout_window, window_starts
from train.rollout.random_draws import UpdateDraws


def test_windows_are_drawn_evenly_among_all_blocks(tmp_path):
    recipe = windows_recipe(tmp_path)
    assert window_starts(recipe) == [0, 3, 6, 9]
    drawn = [draw_start(recipe, update, "generator") for update in range(400)]
    assert all(70 < drawn.count(start) < 130 for start in (0, 3, 6, 9))
    first = replace(recipe, rollout=replace(recipe.rollout, frames=16, independent_first_frame=True))
    assert window_starts(first) == [1, 4, 7, 10]


def test_the_past_takes_all_steps_and_the_first_block_has_no_gradient(tmp_path, monkeypatch):
    recipe = windows_recipe(tmp_path)
    student = load_student(recipe.models.student, dtype=torch.float32)
    text = Conditioning(torch.randn(2, 5, 4096, generator=torch.Generator().manual_seed(0)))
    called, real = [], SaltTransformer3DModel.forward

    def forward(self, *inputs, **options):
        flow = real(self, *inputs, **options)
        called.append((float(inputs[1].flatten()[-1]), flow[0].requires_grad))
        return flow

    monkeypatch.setattr(SaltTransformer3DModel, "forward", forward)
    schedule = recipe.schedule(4)
    draws = UpdateDraws(schedule, 1, None, 3.0)
    result = rollout_window(student, text, recipe, draws, [1, 2], start=6, masked=3, gradient=True)
    assert result.x0.shape == (2, 16, 6, 4, 4) and result.learned == 3
    evaluated = [t for t, _ in called]
    for timestep, times in zip(schedule.timesteps, (4, 4, 2, 2), strict=True):  # two blocks of past, two of the window
        assert sum(abs(t - timestep) < 1e-2 for t in evaluated) == times
    (gradient,) = torch.autograd.grad(result.x0.sum(), student.proj_out.bias, retain_graph=True)
    (masked,) = torch.autograd.grad(
        result.x0[:, :, :3].sum() + 0 * result.x0.sum(), student.proj_out.bias, allow_unused=True
    )
    assert gradient.abs().sum() > 0 and not masked.any() and sum(grad for _, grad in called) == 1


def test_loss_is_that_of_the_frames_behind_the_first_block(tmp_path, monkeypatch):
    """At the clip's start nothing is masked; within the clip a change of the first block's target changes nothing."""
    trainer = LateWindowTrainer(windows_recipe(tmp_path))
    seen = []
    monkeypatch.setattr(
        "train.methods.sc_dmd_losses.dmd_loss",
        lambda x0, gradient, weight_B: seen.append(x0.shape[2]) or (x0 * gradient).mean(),
    )
    monkeypatch.setattr("train.methods.late_windows.draw_start", lambda recipe, update, role: update)
    batch = trainer.prompts.batch(0, range(2), "generator")
    draws = UpdateDraws(trainer.recipe.schedule(2), 1, None, 3.0)
    for start in (0, 6):
        trainer.generator_loss(batch, draws, start)
    assert seen == [6, 3]


def test_a_resumed_run_continues_to_the_bit(tmp_path):
    recipe = windows_recipe(tmp_path, rollout=dict(share={8: 1.0}))

    short = replace(recipe, optimisation=replace(recipe.optimisation, critic_per_generator=1, batch=2))
    check_resume(LateWindowTrainer, short, tmp_path, ("student", "critic", "ema"))


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        (dict(rollout=dict(window=15)), "rollout.long_tuning='window' has no effect on clips of 15 frames"),
        (dict(rollout=dict(window=3)), "rollout.window: found 3, expected more than a block, 3"),
        (dict(data=dict(images="starts")), "data.images is not supported by windows"),
        (dict(loss=dict(align="release")), "loss.align='release' is not supported by windows"),
    ],
)
def test_what_windows_do_not_have_is_an_error(tmp_path, sections, complaint):
    recipe = windows_recipe(tmp_path)
    changed = {name: replace(getattr(recipe, name), **values) for name, values in sections.items()}
    check_settings(recipe)
    with pytest.raises(RecipeError, match=complaint):
        check_settings(replace(recipe, **changed))
