"""The losses against the released implementation's tensors, and the grid rule against its description."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from salt.schedule import Schedule, add_noise, flow_to_x0, warp
from tests.helpers import golden, tiny_recipes
from train import losses
from train.losses.semigroup import draw_triple, middle_point
from train.methods.teacher_forcing import teacher_forcing_loss
from train.rollout.random_draws import uniform_for


def clip(tensor):
    """Golden [B, F, C, H, W] -> our [B, C, F, H, W]."""
    return tensor.transpose(1, 2)


FORWARD = 5e-5  # a float32 forward beside the reference's, as in the rollouts; losses 1e-5, gradients 1e-4


def close(found, expected, tolerance=FORWARD):
    assert golden.relative_error(found, expected) <= tolerance


def test_dmd_equals_the_reference():
    data = load_file(golden.GOLDEN / "train_dmd.safetensors")
    meta = golden.metadata("train_dmd.safetensors")
    real = golden.student()
    critic = golden.student()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(0.9)
    t = torch.tensor([meta["timestep"]])
    sigma = t / 1000
    x0, noise = clip(data["x0"]).requires_grad_(), clip(data["noise"])
    x_t = add_noise(x0.detach(), noise, sigma)
    close(x_t, clip(data["x_t"]), 1e-6)
    with torch.no_grad():
        conditional = real(x_t, t, data["context"]).sample
        close(conditional, clip(data["real_flow_cond"]))
        unconditional = real(x_t, t, data["uncond_context"]).sample
        fake_flow = critic(x_t, t, data["context"]).sample
        close(real.features(x_t, t, data["context"], 1), data["real_features_block1"])
    real_x0 = losses.guided_x0(
        flow_to_x0(x_t, conditional, sigma), flow_to_x0(x_t, unconditional, sigma), meta["guidance"]
    )
    close(real_x0, clip(data["real_x0_cfg"]))
    fake_x0 = flow_to_x0(x_t, fake_flow, sigma)
    close(fake_x0, clip(data["fake_x0"]))
    gradient = losses.dmd_gradient(x0, real_x0, fake_x0)
    close(gradient, clip(data["grad"]))
    loss = losses.dmd_loss(x0, gradient)
    assert loss.item() == pytest.approx(data["loss"].item(), rel=1e-5)
    loss.backward()
    close(x0.grad, clip(data["dloss_dx0"]), 1e-4)
    critic_loss = losses.flow_matching_loss(fake_flow, x0.detach(), noise)
    assert critic_loss.item() == pytest.approx(data["critic_flow_loss"].item(), rel=1e-5)


def test_semigroup_loss_and_gradients_equal_the_reference():
    data = load_file(golden.GOLDEN / "train_scdmd_block.safetensors")
    meta = golden.metadata("train_scdmd_block.safetensors")
    triple = losses.TimestepTriple(meta["t_s"], meta["t_m"], meta["t_e"])
    student = golden.student()
    model, text = CausalModel(student), Conditioning(data["context"])
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    past, x_s = clip(data["past_latents"]), clip(data["x_s"])
    with torch.no_grad():
        write = memory.open(write=3)
        model(ModelInput(past, torch.zeros(1, 3), text, write))
        memory.commit(write)
    v_s = model(ModelInput(x_s, torch.full((1, 3), triple.start), text, memory.open(read=3)))
    close(v_s, clip(data["v_s"]))
    direct = losses.direct_endpoint(x_s, v_s, triple)
    with torch.no_grad():
        x_m = middle_point(x_s, v_s.detach(), triple)
        v_m = model(ModelInput(x_m, torch.full((1, 3), triple.middle), text, memory.open(read=3)))
        composed = losses.composed_endpoint(x_m, v_m, triple)
    close(v_m, clip(data["v_m"]))
    close(direct, clip(data["endpoint_direct"]))
    close(composed, clip(data["endpoint_composed"]))
    weight = losses.time_weight(triple.start)
    assert weight == pytest.approx(meta["weight"])
    loss = losses.semigroup_loss(direct, composed, weight)
    assert loss.item() == pytest.approx(data["loss"].item(), rel=1e-5)
    loss.backward()
    names = {
        "blocks.0.modulation": student.blocks[0].scale_shift_table.grad,
        "blocks.1.self_attn.norm_q.weight": student.blocks[1].attn1.norm_q.weight.grad,
        "blocks.1.self_attn.v.weight": student.blocks[1].attn1.to_v.weight.grad,
        "head.head.bias": student.proj_out.bias.grad,
        "patch_embedding.bias": student.patch_embedding.bias.grad,
    }
    for name, gradient in names.items():
        close(gradient, data[f"grad.{name}"].view_as(gradient), 1e-4)


def test_alignment_losses_equal_the_reference():
    data = load_file(golden.GOLDEN / "train_alignment.safetensors")
    student, reference = data["student"], data["reference"]
    trd = losses.token_relation_distance(student, reference, frames=3)
    assert trd.item() == pytest.approx(data["trd"].item(), rel=1e-5)
    bare = losses.token_relation_distance(student, reference, frames=3, margin=0.0)
    assert bare.item() == pytest.approx(data["trd_margin0"].item(), rel=1e-5)
    assert losses.linear_mmd(student, reference).item() == pytest.approx(data["mmd_linear"].item(), rel=1e-5)


def test_alignment_is_zero_for_equal_features_and_has_no_gradient_to_the_reference():
    student, reference = torch.randn(2, 12, 8, requires_grad=True), torch.randn(2, 12, 8, requires_grad=True)
    for loss in (
        losses.token_relation_distance(student, reference, 3),
        losses.linear_mmd(student, reference),
        losses.rbf_mmd(student, reference),
    ):
        assert loss.item() > 0
        student.grad = None
        loss.backward()
        assert student.grad.norm() > 0 and reference.grad is None
    for equal in (
        losses.token_relation_distance(student, student, 3),
        losses.linear_mmd(student, student),
        losses.rbf_mmd(student, student),
    ):
        assert equal.item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 5 frames"):
        losses.token_relation_distance(student, reference, 5)


def test_dmd_gradient_of_a_perfect_clip_is_not_nan():
    x0 = torch.randn(1, 2, 3, 2, 2)
    assert torch.equal(losses.dmd_gradient(x0, x0, x0), torch.zeros_like(x0))


def test_grid_rule():
    schedule = Schedule.of(8)
    t = schedule.timesteps
    boundaries = [t[0], t[2], t[4], t[6], 0.0]
    for i in range(7):
        options = losses.grid_triples(schedule, i)
        below = [b for b in boundaries if b < t[i + 1]][:2]
        assert [triples[0].end for _, triples in options] == below
        for _, triples in options:
            assert [x.middle for x in triples] == [m for m in t if triples[0].end < m < t[i]]
            assert all(x.start == t[i] > x.middle > x.end for x in triples)
    assert losses.grid_triples(schedule, 7) == []
    assert [e for _, e in losses.grid_triples(schedule, 6)] == [[losses.TimestepTriple(t[6], t[7], 0.0)]]
    drawn = {draw_triple(schedule, 0, torch.Generator().manual_seed(s)) for s in range(200)}
    assert drawn == {x for _, triples in losses.grid_triples(schedule, 0) for x in triples}
    assert draw_triple(schedule, 7, torch.Generator()) is None
    with pytest.raises(ValueError, match="multiple of the 4 segments"):
        losses.grid_triples(Schedule.of(2), 0)


def test_time_weight_of_the_training_list():
    weights = [losses.time_weight(t) for t in Schedule.of(8).timesteps[:-1]]  # the last step has no triple
    assert weights[0] == 0 and max(weights) == pytest.approx(0.375, rel=1e-6)


def test_teacher_forcing_weighs_noise_levels_as_the_release_does():
    """Its schedule's training weights, written out: a bell over 1000 shifted timesteps, less its least, mean 1."""
    timesteps = [1000 * 5 * u / (1 + 4 * u) for u in (k / 1000 for k in range(1000, 0, -1))]
    bell = [math.exp(-2 * ((t - 500) / 1000) ** 2) for t in timesteps]
    expected = [(y - min(bell)) * 1000 / sum(y - min(bell) for y in bell) for y in bell]
    found = losses.bell_weight(torch.tensor(timesteps, dtype=torch.float64) / 1000, 5.0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert found[0] == 0 and found.argmax() == 833  # pure noise, and the step whose timestep is 500


def test_the_recipe_s_weight_reaches_the_teacher_forced_loss(tmp_path):
    """At one drawn noise level the weighted loss is the weight times the plain one."""
    recipe = tiny_recipes.recipe(tmp_path, rollout=dict(frames=3, share={4: 1.0}))
    found = {}
    for name in ("bell", "none"):
        weighted = replace(recipe, start=replace(recipe.start, timestep_weight=name))
        student = load_student(recipe.models.student, dtype=torch.float32)
        latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        text = Conditioning(torch.zeros(1, 4, student.config.text_dim))
        with torch.no_grad():
            found[name] = teacher_forcing_loss(student, latents, text, range(1), weighted, 0)
    sigma = warp(1000 * uniform_for(recipe.run.seed, "sigma", 0, 0, 0), recipe.rollout.shift)
    torch.testing.assert_close(found["bell"], found["none"] * losses.bell_weight(sigma.float(), recipe.rollout.shift))
