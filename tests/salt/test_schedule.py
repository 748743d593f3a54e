"""Schedule: the golden warped timesteps, and the algebra between x0, flow, noise and Euler steps."""

import json

import pytest
import torch

from salt.errors import InputError
from salt.schedule import (
    Schedule,
    add_noise,
    euler,
    flow_to_x0,
    step_list,
    timestep_to_sigma,
    warp,
)
from tests.helpers import golden


@pytest.mark.parametrize("nfe", [8, 4, 2])
def test_warped_timesteps_are_the_released_ones(nfe):
    expected = json.loads((golden.GOLDEN / "schedule.json").read_text())
    made = Schedule.of(nfe, expected["shift"]).timesteps
    assert made == pytest.approx(expected["warped_timesteps"][str(nfe)], rel=5e-7)


def test_custom_lists_and_counts():
    assert step_list(3) == pytest.approx((1000, 2000 / 3, 1000 / 3))
    assert Schedule((900, 300), shift=1.0).timesteps == pytest.approx((900, 300))
    assert Schedule.of(1).nfe == 1


@pytest.mark.parametrize("steps", [(), (500, 1000), (1000, 0), (1200, 500), (500, 500)])
def test_invalid_step_lists(steps):
    with pytest.raises(ValueError, match="strictly falling values in"):
        Schedule(steps)


def test_invalid_shift_and_count():
    with pytest.raises(ValueError, match="shift: found 0"):
        Schedule(shift=0)
    with pytest.raises(ValueError, match="nfe: found 0"):
        step_list(0)


def test_the_shift_can_be_undone():
    steps, shift = torch.linspace(0, 1000, 41, dtype=torch.float64), 5.0
    sigma = warp(steps, shift)
    assert torch.allclose(1000 * sigma / (shift - (shift - 1) * sigma), steps)
    assert torch.allclose(timestep_to_sigma(1000 * sigma), sigma)


@pytest.mark.parametrize(
    ("nfe", "timesteps", "first_sigma"),
    [
        (2, (999, 833), 0.9997998476028442),
        (4, (999, 937, 833, 624), 0.9997998476028442),
        (8, (999, 972, 937, 892, 833, 749, 624, 416), 0.9997998476028442),
    ],
)
def test_longlive2_counts_from_999_in_whole_timesteps(nfe, timesteps, first_sigma):
    calls = Schedule.of(nfe, 5.0, "longlive2").calls
    assert tuple(call.timestep for call in calls) == timesteps and calls[0].sigma == first_sigma
    assert [call.next_sigma for call in calls] == [*(call.sigma for call in calls[1:]), 0.0]
    assert Schedule.of(nfe).calls[0].timestep == 1000.0


def test_a_rule_must_be_known():
    with pytest.raises(InputError, match="rule"):
        Schedule(rule="wan2")  # pyright: ignore[reportArgumentType]


def test_flow_and_x0_and_noise_agree():
    x0, eps = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    sigma = torch.rand(2, 3) * 0.9 + 0.05
    x_t = add_noise(x0, eps, sigma)
    assert torch.allclose(flow_to_x0(x_t, eps - x0, sigma), x0, atol=1e-6)


def test_euler_follows_the_straight_path():
    x0, eps = torch.randn(1, 4, 3, 2, 2), torch.randn(1, 4, 3, 2, 2)
    moved = euler(add_noise(x0, eps, 0.8), eps - x0, 0.8, 0.3)
    assert torch.allclose(moved, add_noise(x0, eps, 0.3), atol=1e-6)


def test_per_frame_sigma_touches_only_its_frame():
    x0, eps = torch.zeros(1, 2, 3, 1, 1), torch.ones(1, 2, 3, 1, 1)
    assert add_noise(x0, eps, torch.tensor([[0.0, 0.5, 1.0]]))[0, 0, :, 0, 0].tolist() == [0.0, 0.5, 1.0]
