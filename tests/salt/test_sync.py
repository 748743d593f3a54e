"""On a GPU nothing inside a block synchronises with the device, so that kernel launches leave no gaps."""

import pytest
import torch

from salt.acceleration.cuda_graphs import CUDAGraphTransformer
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers import golden

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def forbidden():
    """Context in which any operation that makes the host wait raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_a_synchronisation_is_detected(forbidden):
    x = torch.ones(1, device="cuda")
    forbidden()
    with pytest.raises(RuntimeError, match="synchroniz"):
        x.item()


@pytest.mark.parametrize("graphed", [False, True])
@pytest.mark.parametrize("policy", ["full", "sink:3,window:9", "relative:3,window:9,int8", "window:9,int4"])
@torch.no_grad()
def test_blocks_do_not_synchronise(policy, graphed, forbidden):
    student = golden.student().cuda()
    text = Conditioning(torch.randn(1, 12, 64, device="cuda"))
    model = CausalModel(CUDAGraphTransformer(student) if graphed else student)
    settings = RolloutSettings(Schedule.of(4), fuse=True)
    memory = student.new_memory(MemoryPolicy.parse(policy), 1, 4, 6, frames=36)
    blocks = rollout(model, text, memory, SeededNoise(0, 1, 16, 4, 6, device="cuda"), 36, settings)
    for _ in range(6):  # libraries load, the window fills, graphs are captured
        next(blocks)
    forbidden()
    for _ in blocks:
        pass
