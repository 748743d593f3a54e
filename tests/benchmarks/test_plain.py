"""The plain loop is a valid baseline: it gives the same latents, gradients and updates as ours."""

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm

from benchmarks.cloning import CloningMemory, PlainBidirectional, PlainRotary
from benchmarks.plain import plain_critic_loss, plain_generator_loss, plain_memory, plain_rollout, plain_update
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.attention import Bidirectional
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.rope import rotary_table
from salt.schedule import Schedule
from tests.helpers import tiny_recipes
from train.data.batch import Batch
from train.distributed.activation_checkpointing import recompute
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout.random_draws import UpdateDraws

TEXT = Conditioning(torch.randn(1, 5, 4096, generator=torch.Generator().manual_seed(1)))
DMD = dict(semigroup=0.0, align="none")


@pytest.mark.parametrize("policy", ["full", "sink:1,window:6"])
@pytest.mark.parametrize("lead", [False, True])
@torch.no_grad()
def test_the_plain_loop_gives_our_latents(policy, lead):
    student, policy, frames = tiny_recipes.model(3), MemoryPolicy.parse(policy), 13 if lead else 12
    settings = RolloutSettings(Schedule.of(4), independent_first_frame=lead)
    noise = SeededNoise(0, 1, 16, 4, 4)
    ours = rollout(CausalModel(student), TEXT, student.new_memory(policy, 1, 4, 4, frames), noise, frames, settings)
    memory = plain_memory(student, policy, 1, 4, 4, frames)
    plain = torch.cat(list(plain_rollout(student, TEXT, memory, noise, frames, settings)), 2)
    assert torch.allclose(torch.cat([b.latents for b in ours], 2), plain, atol=1e-5)
    assert memory.next_frame == frames, "the last block's context pass is part of the published loop"


@torch.no_grad()
def test_the_plain_cache_runs_in_our_loop():
    student, noise = tiny_recipes.model(3), SeededNoise(0, 1, 16, 4, 4)

    def clip(memory):
        return torch.cat([b.latents for b in rollout(CausalModel(student), TEXT, memory, noise, 12)], 2)  # type: ignore[arg-type]

    policy = MemoryPolicy("sink", 7, 1)
    plain = clip(CloningMemory(policy, student.memory_geometry(1, 4, 4), student.dtype))
    assert torch.allclose(plain, clip(student.new_memory(policy, 1, 4, 4)), atol=1e-5)
    with pytest.raises(ValueError, match="one block"):
        CloningMemory(policy, student.memory_geometry(1, 4, 4), student.dtype).open(write=3, read=3)
    with pytest.raises(ValueError, match="policy: found relative"):
        CloningMemory(MemoryPolicy("relative", 7, 1), student.memory_geometry(1, 4, 4), student.dtype)


def test_the_plain_rotary_embedding_is_ours():
    q, k, v = torch.randn(3, 2, 3 * 4 * 5, 2, 16)
    plain = PlainBidirectional(PlainRotary(16), 3, 4, 5)
    ours = Bidirectional(rotary_table(range(3), 4, 5, 16))

    def attended(context):
        tensors = []
        context.attend(0, q, k, v, lambda *qkv: tensors.extend(qkv) or qkv[0])
        return tensors

    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(attended(plain), attended(ours), strict=True))


def gradients(learner, loss):
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in learner.model.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("keep", ["everything", "input", "attention"])
def test_the_plain_loop_has_our_gradients(tmp_path, keep, monkeypatch):
    # In float64, where rounding differences are negligible.
    monkeypatch.setattr(FP32LayerNorm, "forward", torch.nn.LayerNorm.forward)
    trainer = SCDMDTrainer(tiny_recipes.recipe(tmp_path, loss=DMD, models=dict(checkpointing=False)))
    for model in (trainer.student.model.model, trainer.critic.model.model, trainer.teacher.wrapped.model):
        model.double()
        if keep != "everything":
            recompute(model, keep)
    batch = trainer.prompts.batch(0, range(2), "generator")
    batch = Batch(batch.samples, *(Conditioning(c.text.double()) for c in (batch.conditioning, batch.negative)))
    draws = UpdateDraws(trainer.recipe.schedule(4), 1, None, 3.0)
    for learner, ours, plain in (
        (trainer.student, trainer.generator_loss, plain_generator_loss),
        (trainer.critic, trainer.critic_loss, plain_critic_loss),
    ):
        (expected_loss, logged), (plain_loss, plain_logged) = ours(batch, draws, 0), plain(trainer, batch, draws, 0)
        assert plain_logged == pytest.approx({k: float(v) for k, v in logged.items()}, rel=1e-6)
        expected, found = gradients(learner, expected_loss), gradients(learner, plain_loss)
        assert found.keys() == expected.keys() and len(found) > 30
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-12, name


def test_a_plain_update_equals_ours(tmp_path):
    def after(update):
        trainer = SCDMDTrainer(tiny_recipes.recipe(tmp_path, loss=DMD, optimisation=dict(lr=1e-5, critic_lr=1e-5)))
        return update(trainer)

    assert after(lambda t: plain_update(t, 0)) == pytest.approx(after(lambda t: t.update(0)), rel=1e-3)


def test_the_plain_loop_supports_only_dmd_on_full_memory(tmp_path):
    trainer = SCDMDTrainer(tiny_recipes.recipe(tmp_path, loss=DMD, rollout=dict(memory="sink:1,window:5", frames=9)))
    draws = UpdateDraws(trainer.recipe.schedule(2), 1, None, 3.0)
    with pytest.raises(ValueError, match="expected full memory"):
        plain_generator_loss(trainer, trainer.prompts.batch(0, range(2), "generator"), draws, 0)
    salt = SCDMDTrainer(tiny_recipes.recipe(tmp_path))
    with pytest.raises(ValueError, match="expected DMD only"):
        plain_generator_loss(salt, salt.prompts.batch(0, range(2), "generator"), draws, 0)
