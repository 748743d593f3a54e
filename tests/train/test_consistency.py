"""The stage `cd`: its loss beside a plain rendition of it, block by block, and resuming to the bit."""

from dataclasses import replace

import pytest
import torch

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from tests.helpers.resumed_run import check_resume
from tests.helpers.stage_recipes import cd_recipe
from train.config.recipe import RecipeError
from train.config.validation import check_settings
from train.memory_estimate.estimate import estimate
from train.methods import consistency
from train.methods.consistency import ConsistencyTrainer, neighbours


def block_by_block(model, x_BCFHW, sigma: float, clean, text):
    """Flow of every block behind the clean blocks before it, which the memory was written with."""
    call, flows = CausalModel(model), []
    memory = model.new_memory(MemoryPolicy(), len(clean), 4, 4)
    for first in (0, 3):
        block = slice(first, first + 3)
        t = torch.full((len(clean), 3), 1000 * sigma)
        flows.append(call(ModelInput(x_BCFHW[:, :, block], t, text, memory.open(read=3))))
        write = memory.open(write=3)
        call(ModelInput(clean[:, :, block], torch.zeros(len(clean), 3), text, write))
        memory.commit(write)
    return torch.cat(flows, dim=2)


@pytest.mark.parametrize("step", [2, 7])
def test_the_loss_equals_a_plain_rendition(tmp_path, monkeypatch, step):
    """Teacher's step, target and student in the order of Causal Forcing++, on the schedule written out."""
    monkeypatch.setattr("train.methods.clip_trainer.seed_for", lambda *key: step)
    recipe = cd_recipe(tmp_path)
    trainer = ConsistencyTrainer(recipe)
    trainer.ema.update()
    for i, value in enumerate(trainer.ema.average.values()):
        value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)))
    batch = trainer.prompts.batch(0, range(2), "start")
    found = trainer.micro_batch_loss(batch, 0)

    with torch.no_grad():
        student, teacher = (
            load_student(p, dtype=torch.float32) for p in (recipe.models.student, recipe.models.teacher)
        )
        clean = trainer.read_clips(batch, 0).latents
        cond, uncond = batch.conditioning, batch.negative
        u, u_next = (8 - step) / 8, (7 - step) / 8
        sigma, sigma_next = (5 * v / (1 + 4 * v) for v in (u, u_next))
        noise = torch.stack(
            [torch.randn(16, 6, 4, 4, generator=consistency.generator_for(0, "n", 0, i)) for i in (0, 1)]
        )
        x = (1 - sigma) * clean + sigma * noise
        v_cond, v_uncond = (block_by_block(teacher, x, sigma, clean, c) for c in (cond, uncond))
        x_next = x - (sigma - sigma_next) * (v_uncond + 3.0 * (v_cond - v_uncond))
        end = x - sigma * block_by_block(student, x, sigma, clean, cond)
        student.load_state_dict(trainer.averaged_state())
        target = x_next - sigma_next * block_by_block(student, x_next, sigma_next, clean, cond)
        expected = ((end - target) ** 2).mean()
        if step == 7:  # the boundary: at sigma 0 a clip is its own end
            torch.testing.assert_close(target, x_next)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4) and found.item() > 0.01


def test_the_student_alone_has_gradient_and_the_average_follows_it(tmp_path):
    trainer = ConsistencyTrainer(cd_recipe(tmp_path))
    start = {name: p.detach().clone() for name, p in trainer.student.model.model.named_parameters()}
    loss = trainer.micro_batch_loss(trainer.prompts.batch(0, range(2), "start"), 0)
    loss.backward()
    assert all(p.grad is None for p in trainer.teacher.wrapped.model.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in trainer.student.model.parameters()) > 0.8 * len(start)
    trainer.student.optimizer.zero_grad()
    trainer.update(0)
    now = dict(trainer.student.model.model.named_parameters())
    for name, value in trainer.ema.average.items():  # decay 0.5, from the initial weights on
        torch.testing.assert_close(value, 0.5 * (start[name] + now[name].detach()))


def test_neighbours_are_drawn_over_all_steps_for_whole_clips(tmp_path):
    recipe = cd_recipe(tmp_path)
    teacher = load_student(recipe.models.teacher, dtype=torch.float32)
    text = Conditioning(torch.zeros(2, 4, 4096))
    pairs = set()
    for update in range(40):
        points = neighbours(teacher, torch.zeros(2, 16, 6, 4, 4), text, text, range(2), recipe, update)
        assert (points.sigma_BF == points.sigma_BF[:, :1]).all()
        both = torch.stack([points.sigma_BF[:, 0], points.following_sigma_BF[:, 0]], dim=1)
        pairs |= {(round(a, 4), round(b, 4)) for a, b in both.tolist()}
    sigmas = [round(s, 4) for s in (*recipe.schedule(8).sigmas, 0.0)]
    assert pairs == set(zip(sigmas, sigmas[1:], strict=False))


def test_a_resumed_run_continues_to_the_bit(tmp_path):
    check_resume(ConsistencyTrainer, cd_recipe(tmp_path), tmp_path, ("student", "ema"), updates=4)


def test_settings_that_the_stage_cannot_have_are_errors(tmp_path):
    recipe = cd_recipe(tmp_path)
    check_settings(recipe)
    with pytest.raises(RecipeError, match="start.teacher: found bidirectional, expected causal in the stage cd"):
        check_settings(replace(recipe, start=replace(recipe.start, teacher="bidirectional")))
    with pytest.raises(RecipeError, match="optimisation.ema_start: found 9, expected 0 in the stage cd"):
        check_settings(cd_recipe(tmp_path, ema_start=9))


def test_the_estimate_counts_the_teacher(tmp_path):
    found = estimate(cd_recipe(tmp_path))
    assert found.always["teacher"] > 0 and not any("critic" in name for name in found.always)
    assert found.moments["targets"]["working memory"] > 0


def test_the_student_learns_the_ends_of_the_teacher_s_ode(tmp_path):
    """From noise, one evaluation lands nearer to where the teacher's 8 steps lead than before."""
    recipe = cd_recipe(tmp_path, updates=40, lr=3e-3)
    recipe = replace(recipe, start=replace(recipe.start, guidance=0.0), run=replace(recipe.run, save_every=0))
    trainer = ConsistencyTrainer(recipe)
    batch, schedule = trainer.prompts.batch(0, range(2), "start"), recipe.schedule(8)
    clean = trainer.read_clips(batch, 0).latents
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))

    def distance():
        with torch.no_grad():
            x, levels = noise, [*schedule.sigmas, 0.0]
            for sigma, following in zip(levels, levels[1:], strict=False):
                flow = block_by_block(teacher, x, sigma, clean, batch.conditioning)
                x = x - (sigma - following) * flow
            return (
                (noise - block_by_block(trainer.student.model.model, noise, 1.0, clean, batch.conditioning) - x)
                .square()
                .mean()
                .item()
            )

    teacher = load_student(recipe.models.teacher, dtype=torch.float32)
    before = distance()
    trainer.run()
    assert distance() < 0.7 * before
