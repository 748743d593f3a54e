"""The semigroup defect against values derived by hand, for causal and bidirectional students."""

import pytest
import torch

from salt.checkpoints import load_student, save_diffusers
from salt.checkpoints.families import KREA
from salt.checkpoints.longlive2 import LONGLIVE2
from salt.conditioning import Conditioning
from salt.errors import InputError
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import SeededNoise
from salt.schedule import Schedule, add_noise, warp
from salt.semigroup_defect import TRIPLES, defect_table, steps_for
from salt.spec import StudentSpec
from tests.helpers import tiny_recipes
from train.evaluation.semigroup_defect import DefectSettings, measure_defect
from train.rollout.random_draws import seed_for

TEXT = Conditioning(torch.randn(2, 5, 4096, generator=torch.Generator().manual_seed(5)))
SMALL = dict(frames=6, height=4, width=4)
TRIPLE = (750, 625, 250)


class Toy(SaltTransformer3DModel):
    """A student whose flow is a formula of (x, sigma [B, F or 1]); the transformer runs too, to write its memory."""

    rule: staticmethod

    def forward(self, hidden_states, timestep, *rest, **options):
        (flow,) = super().forward(hidden_states, timestep, *rest, **options)
        sigma = (timestep.reshape(timestep.shape[0], 1, -1, 1, 1) / 1000).to(hidden_states)
        return (torch.where(sigma > 0, self.rule(hidden_states, sigma.clamp_min(1e-9)), flow),)


def toy(rule) -> Toy:
    model = tiny_recipes.model(1)
    model.__class__ = Toy
    model.rule = rule  # type: ignore[assignment]
    return model  # type: ignore[return-value]


KINDS = pytest.mark.parametrize("per_block", [0, 3])


@KINDS
def test_a_constant_prediction_has_no_defect(per_block):
    """x0 is constant: every path ends there, by either operator."""
    student = toy(lambda x, sigma: (x - 0.5) / sigma)
    found = measure_defect(student, TEXT, DefectSettings(frames_per_block=per_block, **SMALL))
    assert set(found) == {(t, o) for t in TRIPLES for o in ("euler", "sampler")}
    assert max(found.values()) < 1e-10


@KINDS
def test_constant_velocity_has_no_euler_defect_and_the_samplers_by_formula(per_block):
    """Euler: 0. Sampler: x0_m - x0_s = sigma_m (eps - v - x0_s), relative to sigma_s v."""
    v = 0.7
    settings = DefectSettings(frames_per_block=per_block, **SMALL)
    found = measure_defect(toy(lambda x, _: torch.full_like(x, v)), TEXT, settings, [4], [(1000, 500, 0)])
    assert found[(1000, 500, 0), "euler"] < 1e-10
    noise = SeededNoise([seed_for("defect", 4, row) for row in range(2)], 2, 16, 4, 4)
    sigma_m = float(warp(500))
    expected = []
    for start, frames in [(0, 6)] if per_block == 0 else [(0, 3), (3, 3)]:
        gap = sigma_m * (noise(start, frames, -1) - v - (noise(start, frames, 0) - v))
        expected += (gap.square().flatten(1).mean(1) / v**2).tolist()
    assert found[(1000, 500, 0), "sampler"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@KINDS
@pytest.mark.parametrize("shift", [5.0, 1.0])
def test_a_linear_flow_has_the_defect_of_its_curvature(per_block, shift):
    """v = a x: v_m - v_s = -a^2 (sigma_s - sigma_m) x_s, for any x_s."""
    a, (s, m, e) = 0.9, (float(warp(step, shift)) for step in TRIPLE)
    settings = DefectSettings(frames_per_block=per_block, shift=shift, **SMALL)
    found = measure_defect(toy(lambda x, _: a * x), TEXT, settings, triples=[TRIPLE], operators=["euler"])
    assert found == {(TRIPLE, "euler"): pytest.approx(((m - e) / (s - e) * a * (s - m)) ** 2, rel=1e-4)}


def test_blocks_are_measured_against_the_students_own_memory():
    """Reference: two blocks under the block-causal mask, the first one clean, without any KV memory."""
    student, text = tiny_recipes.model(3), Conditioning(TEXT.text[:1])
    found = measure_defect(student, text, DefectSettings(**SMALL), [8], [TRIPLE])
    noise = SeededNoise([seed_for("defect", 8, 0)], 1, 16, 4, 4)
    s, m, e = (float(warp(step)) for step in TRIPLE)
    sigmas, past, ratios = Schedule().sigmas, [], {"euler": [], "sampler": []}

    def flow(x, sigma):
        blocks = len(past) + 1
        mask = student.block_causal([3] * blocks, 4, 4, clean_context=True, policy=MemoryPolicy())
        times = torch.zeros(1, 6 * blocks)
        times[:, -3:] = 1000 * sigma
        both = torch.cat([*past, x, *(torch.zeros_like(p) for p in past), x], 2)
        return student(both, times, text.text, attention_context=mask).sample[:, :, -3:]

    with torch.no_grad():
        for start in (0, 3):
            x = noise(start, 3, 0)
            for i, sigma in enumerate(sigmas):
                v = flow(x, sigma)
                x0 = x - sigma * v
                if sigma == pytest.approx(s):
                    v_m = flow(x - (s - m) * v, m)
                    gap = (m - e) / (s - e) * (v_m - v)
                    ratios["euler"].append(gap.square().sum() / v.square().sum())
                    x_m = add_noise(x0, noise(start, 3, -1), m)
                    gap = x_m - m * flow(x_m, m) - x0
                    ratios["sampler"].append(gap.square().sum() / (s * v).square().sum())
                if i + 1 < len(sigmas):
                    x = add_noise(x0, noise(start, 3, i + 1), sigmas[i + 1])
            past.append(x0)
    for operator, values in ratios.items():
        assert len(values) == 2 and not torch.isclose(*values, rtol=1e-3)
        assert found[TRIPLE, operator] == pytest.approx(float(sum(values)) / 2, rel=1e-3)


def test_the_mean_is_over_seeds_and_prompts():
    student, settings = tiny_recipes.model(3), DefectSettings(**SMALL)

    def value(seeds):
        return measure_defect(student, TEXT, settings, seeds, [TRIPLE])[TRIPLE, "euler"]

    one, two = value([1]), value([2])
    by_one = measure_defect(student, TEXT, settings, [1], [TRIPLE], batch=1)
    assert by_one[TRIPLE, "euler"] == pytest.approx(one, rel=1e-4)
    assert one != two and value([1, 2]) == pytest.approx((one + two) / 2, rel=1e-5) and value([1]) == one


def test_a_student_in_training_is_left_unchanged():
    student = tiny_recipes.model(3).train()
    student.enable_gradient_checkpointing()
    with torch.autocast("cpu", torch.bfloat16):
        found = measure_defect(student, TEXT, DefectSettings(**SMALL), triples=[TRIPLE])
    assert student.training and all(p.grad is None for p in student.parameters())
    exact = measure_defect(student, TEXT, DefectSettings(**SMALL), triples=[TRIPLE])
    assert found[TRIPLE, "euler"] == pytest.approx(exact[TRIPLE, "euler"], rel=0.1)


def test_half_precision_has_nearly_the_same_defect(tmp_path):
    save_diffusers(tiny_recipes.model(3), tmp_path)
    values = []
    for dtype in (torch.float32, torch.bfloat16):  # the loader keeps norms and modulations in float32
        text = Conditioning(TEXT.text.to(dtype))
        found = measure_defect(load_student(tmp_path, dtype=dtype), text, DefectSettings(**SMALL), triples=[TRIPLE])
        values.append(found[TRIPLE, "euler"])
    assert values[1] == pytest.approx(values[0], rel=0.1) and values[1] != values[0]


def test_invalid_triples_raise():
    settings = DefectSettings(**SMALL)
    with pytest.raises(ValueError, match="found 500,750,0, expected falling"):
        measure_defect(tiny_recipes.model(3), TEXT, settings, triples=[(500, 750, 0)])
    with pytest.raises(ValueError, match="t_s 875, expected one of the steps 1000, 750, 500, 250"):
        measure_defect(tiny_recipes.model(3), TEXT, settings, triples=[(875, 750, 0)])
    assert len(steps_for([(750, 500, 0)])) == 4 and len(steps_for([(875, 500, 0)])) == 8
    with pytest.raises(ValueError, match="found t_s 900"):
        steps_for([(900, 500, 0)])


def test_the_table_has_a_line_per_operator():
    table = defect_table({"mine": {((750, 500, 0), "euler"): 0.25, ((750, 500, 0), "sampler"): 0.5}})
    assert table.splitlines()[0] == "| | operator | 750,500,0 | mean |"
    assert table.splitlines()[2:] == ["| mine | euler | 0.25000 | 0.25000 |", "| mine | sampler | 0.50000 | 0.50000 |"]


@pytest.mark.parametrize("spec", [LONGLIVE2, KREA, StudentSpec(policy=MemoryPolicy("far", window=2))])
def test_steps_on_which_the_defect_is_not_defined_are_refused(spec):
    settings = DefectSettings.of(spec, 6, 4, 4)
    with pytest.raises(InputError, match="student: found .* expected one with Wan 2.1's steps"):
        measure_defect(tiny_recipes.model(0), TEXT, settings)
