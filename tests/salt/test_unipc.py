"""UniPC's steps beside those of diffusers' class, which computes them on the latents themselves."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from salt.schedule import Schedule
from salt.solvers.unipc import BELOW_NOISE, UniPC, step_weights


class OnLatents:
    """diffusers' class as its pipelines call it."""

    def __init__(self, calls):
        self.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        self.scheduler.set_timesteps(len(calls))
        sigmas = torch.tensor([*(call.sigma for call in calls), 0.0], dtype=torch.float64)
        self.scheduler.sigmas = sigmas.clamp(max=BELOW_NOISE)
        self.scheduler.set_begin_index(0)
        self.timesteps = iter(self.scheduler.timesteps)

    def step(self, x, flow):
        return self.scheduler.step(flow, next(self.timesteps), x, return_dict=False)[0]


@pytest.mark.parametrize("rule", ["longlive2", "wan", "krea"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 8])
def test_steps_are_those_of_diffusers(rule, nfe):
    """Also where a caller changes latents between steps, as for a first frame that is given."""
    calls = Schedule.of(nfe, 5.0, rule).calls
    ours, theirs = UniPC(calls), OnLatents(calls)
    draw = torch.Generator().manual_seed(nfe)
    x = y = torch.randn(1, 2, 3, 2, 2, dtype=torch.float64, generator=draw)
    for _ in calls:
        flow, given = torch.randn(2, *x.shape, dtype=torch.float64, generator=draw)
        x, y = (solver.step(latents, flow) for solver, latents in ((ours, x), (theirs, y)))
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-5)
        x, y = (torch.cat([given[:, :, :1], latents[:, :, 1:]], dim=2) for latents in (x, y))


def test_the_last_step_is_the_model_s_own_prediction():
    *_, last = step_weights(Schedule.of(4, 5.0, "longlive2").sigmas)
    assert last == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_latents_keep_their_dtype():
    x = torch.zeros(1, 2, 3, 2, 2, dtype=torch.bfloat16)
    assert UniPC(Schedule.of(2).calls).step(x, x).dtype == torch.bfloat16
