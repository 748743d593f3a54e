"""Rollouts with gradient: against a plain block-causal reference, and the rules of references and exits."""

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm

from salt.conditioning import Conditioning
from salt.models.attention import BlockCausal
from salt.schedule import Schedule, add_noise, flow_to_x0
from tests.helpers import tiny_recipes
from train.losses import TimestepTriple, composed_endpoint, direct_endpoint, dmd_loss, semigroup_loss
from train.losses.semigroup import middle_point
from train.rollout.gradient_rollout import rollout_with_grad
from train.rollout.random_draws import UpdateDraws, draw_update
from train.rollout.reference_rollout import AlignedNoise, reference_steps, rollout_reference


class DetachedContext(BlockCausal):
    """The block-causal mask with no gradient through keys and values of the clean clip, as memory has none."""

    def attend(self, layer, q, k, v, attention):
        clean = sum(self.blocks) * self.tokens
        k, v = (torch.cat([x[:, :clean].detach(), x[:, clean:]], dim=1) for x in (k, v))
        return super().attend(layer, q, k, v, attention)


def plain_rollout(student, text, recipe, draws, noise):
    """The slow reference: no memory; every step of every block is one forward over the whole clip so far, with the
    clean blocks before it under the block-causal mask. Returns the clip and both semigroup endpoints, with gradient."""
    n = recipe.rollout.frames_per_block
    past, x0s, directs, composeds = [], [], [], []

    def flow_of(block, x, t):
        clean = torch.cat([*past, x.detach()], 2)
        noisy = torch.cat([*(torch.zeros_like(p) for p in past), x], 2)
        frames = clean.shape[2]
        mask = student.block_causal([n] * (block + 1), 4, 4, clean_context=True, policy=recipe.policy)
        context = DetachedContext(**vars(mask))
        times = torch.zeros(1, 2 * frames, dtype=x.dtype)
        times[:, -n:] = t
        both = student(torch.cat([clean, noisy], 2), times, text, attention_context=context).sample
        return both[:, :, -n:]

    for block in range(recipe.rollout.frames // n):
        start, x = block * n, noise(block * n, n, 0)
        to_exit = draws.schedule_to_exit if block else draws.schedule_to_exit.first
        t_exit = to_exit.timesteps[-1]
        for i, (t, sigma) in enumerate(zip(to_exit.timesteps, to_exit.sigmas, strict=True)):
            with torch.set_grad_enabled(t == t_exit):
                flow = flow_of(block, x, t)
            x0 = flow_to_x0(x, flow, sigma)
            if t == t_exit:
                break
            x = add_noise(x0, noise(start, n, i + 1), to_exit.sigmas[i + 1])
        if draws.triple is not None:
            directs.append(direct_endpoint(x, flow, draws.triple))
            with torch.no_grad():
                x_m = middle_point(x, flow, draws.triple)
                composeds.append(composed_endpoint(x_m, flow_of(block, x_m, draws.triple.middle), draws.triple))
        x0s.append(x0)
        past.append(x0.detach())
    return torch.cat(x0s, 2), *(torch.cat(ends, 2) if ends else None for ends in (directs, composeds))


@pytest.mark.parametrize("memory", ["full", "window:6", "sink:1,window:5"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_through_the_memory_equals_the_plain_reference(tmp_path, memory, checkpointing, monkeypatch):
    # diffusers' norms round to float32 whatever comes in; here every digit of float64 is wanted.
    monkeypatch.setattr(FP32LayerNorm, "forward", torch.nn.LayerNorm.forward)
    recipe = tiny_recipes.recipe(tmp_path, rollout=dict(memory=memory, frames=6 if memory == "full" else 9))
    student = tiny_recipes.model(3).double()
    schedule = Schedule.of(8)
    t = schedule.timesteps
    draws = UpdateDraws(schedule, 2, TimestepTriple(t[2], t[3], t[4]), 3.0)
    text = torch.randn(1, 5, 4096, dtype=torch.float64)

    def gradients(x0, direct, composed):
        weights = torch.linspace(-1, 1, x0.numel(), dtype=torch.float64).view_as(x0)
        loss = dmd_loss(x0, weights) + 0.2 * semigroup_loss(direct, composed, 0.0625)
        student.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    if checkpointing:
        student.enable_gradient_checkpointing()
    result = rollout_with_grad(student, Conditioning(text), recipe, draws, [11], gradient=True)
    ours = gradients(result.x0, *result.exits.endpoints())
    reference = plain_rollout(student, text, recipe, draws, result.noise)
    assert torch.allclose(result.x0, reference[0], atol=1e-6)
    theirs = gradients(*reference)
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-12, name


def test_gradient_only_on_the_window(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path, rollout=dict(frames=12, window=6))
    student = tiny_recipes.model(3)
    draws = UpdateDraws(Schedule.of(4), 1, None, 3.0)
    result = rollout_with_grad(student, Conditioning(torch.randn(1, 5, 4096)), recipe, draws, [1], gradient=True)
    assert result.x0.shape[2] == 6 and result.x0.requires_grad
    assert [f.requires_grad for f in result.exits.flows] == [False, False, True, True]


def test_evicting_memory_really_evicts(tmp_path):
    text, student = Conditioning(torch.randn(1, 5, 4096)), tiny_recipes.model(3)
    draws = UpdateDraws(Schedule.of(2), 1, None, 3.0)

    def clip(memory):
        recipe = tiny_recipes.recipe(tmp_path, rollout=dict(frames=12, memory=memory))
        return rollout_with_grad(student, text, recipe, draws, [1], gradient=False).x0

    full, window = clip("full"), clip("sink:1,window:7")
    assert torch.allclose(full[:, :, :6], window[:, :, :6], atol=1e-5)
    assert not torch.allclose(full[:, :, 9:], window[:, :, 9:], atol=1e-3)


def test_noise_aligned_reference_shares_noise_where_steps_are_shared():
    two, four = Schedule.of(2).steps, Schedule.of(4).steps
    steps, stepping = reference_steps(two, four, exit_step=500)
    assert steps == (1000, 750, 500) and stepping == ("ode", "sde")

    class Named:
        seeds = (0,)

        def __init__(self, name):
            self.name = name

        def __call__(self, start, frames, draw):
            return (self.name, draw)

    noise = AlignedNoise(Named("student"), Named("own"), two, four)
    assert [noise(0, 3, i) for i in range(3)] == [("student", 0), ("own", 1), ("student", 1)]


@pytest.mark.parametrize("aligned", [True, False])
def test_a_reference_on_the_students_own_list_is_the_students_clip(tmp_path, aligned, monkeypatch):
    """On the same list the reference is the student's own clip: same noise, same exit, its own memory."""
    recipe = tiny_recipes.recipe(tmp_path, loss=dict(noise_aligned=aligned))
    student, text = tiny_recipes.model(3), Conditioning(torch.randn(1, 5, 4096))
    draws = UpdateDraws(Schedule.of(2), 1, None, 3.0)
    result = rollout_with_grad(student, text, recipe, draws, [1], gradient=False)
    dense = rollout_reference(student, text, recipe, draws, result, [2])
    assert not torch.allclose(dense, result.x0, atol=1e-3) and not dense.requires_grad
    monkeypatch.setattr(type(recipe), "schedule", lambda self, nfe: Schedule.of(2))
    same = torch.equal(rollout_reference(student, text, recipe, draws, result, [2]), result.x0)
    assert same == aligned, "only a noise-aligned reference re-noises with the student's noise"


@pytest.mark.parametrize(("exit_index", "first_exit"), [(0, 2), (1, 0), (1, 3)])
def test_the_first_block_leaves_at_an_exit_of_its_own(tmp_path, exit_index, first_exit, monkeypatch):
    """Causal Forcing++: 4 steps for the first block, 2 for the others; clip and gradient of the plain reference."""
    monkeypatch.setattr(FP32LayerNorm, "forward", torch.nn.LayerNorm.forward)
    recipe = tiny_recipes.recipe(
        tmp_path, rollout=dict(frames=9, share={2: 1.0}, first_steps=4), loss=dict(semigroup=0.0, align="none")
    )
    draws = UpdateDraws(recipe.schedule(2), exit_index, None, 3.0, first_exit)
    text, gradients = torch.randn(1, 5, 4096, dtype=torch.float64), []
    for way in ("engine", "plain"):
        student = tiny_recipes.model(3).double()
        if way == "engine":
            result = rollout_with_grad(student, Conditioning(text), recipe, draws, [7], gradient=True)
            x0, noise = result.x0, result.noise
            clip = x0.detach()
        else:
            x0 = plain_rollout(student, text, recipe, draws, noise)[0]
            torch.testing.assert_close(x0, clip, rtol=1e-6, atol=1e-8)
        x0.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


def test_draws_depend_on_recipe_and_update_alone(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    drawn = [draw_update(recipe, u, "generator") for u in range(300)]
    assert drawn == [draw_update(recipe, u, "generator") for u in range(300)]
    counts = {n: sum(c.schedule.nfe == n for c in drawn) / 300 for n in (8, 4, 2)}
    assert counts[8] == pytest.approx(0.4, abs=0.1) and counts[2] == pytest.approx(0.2, abs=0.08)
    for c in drawn:
        assert 0 <= c.exit_index < c.schedule.nfe
        assert (c.triple is not None) == (c.schedule.nfe == 8 and c.exit_index < 7)
    assert {c.exit_index for c in drawn if c.schedule.nfe == 8} == set(range(8))
    assert [draw_update(recipe, u, "critic") for u in range(20)] != drawn[:20]
    guided = tiny_recipes.recipe(tmp_path, loss=dict(guidance=1.0, guidance_max=3.5))
    values = [draw_update(guided, u, "generator").guidance for u in range(100)]
    first = tiny_recipes.recipe(tmp_path, rollout=dict(share={2: 1.0}, first_steps=4), loss=dict(semigroup=0.0))
    assert {(d.exit_index, d.first_exit) for d in (draw_update(first, u, "critic") for u in range(100))} == {
        (i, j) for i in range(2) for j in range(4)
    }
    assert min(values) < 1.5 and max(values) > 3 and all(1 <= v <= 3.5 for v in values)
