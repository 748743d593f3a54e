"""CUDA graphs of forwards; on the CPU a graph is replaced by the function itself, run on the graph's static tensors."""

import gc
import weakref

import pytest
import torch

from salt.acceleration.cuda_graphs import CUDAGraphTransformer, has_fixed_shapes
from salt.conditioning import Conditioning, PromptChange, PromptSchedule
from salt.memory import MemoryPolicy
from salt.memory.store import Store
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers import golden

POLICIES = [
    MemoryPolicy("window", 9),
    MemoryPolicy("sink", 9, 3),
    MemoryPolicy("sink", 8, 2),
    MemoryPolicy("relative", 9, 1),
    MemoryPolicy("cyclic", 9),
    MemoryPolicy("blended", 9, 3),
    MemoryPolicy("sink", 9, 3, precision="int8"),
    MemoryPolicy("relative", 9, 3, precision="int4"),
]


class Tape:
    """Counts captures and replays. Like a CUDA graph it keeps none of the captured tensors alive."""

    def __init__(self):
        self.recorded = self.played = 0

    def __call__(self, function):
        self.recorded += 1
        recorded = weakref.ref(function)

        def play():
            self.played += 1
            alive = recorded()
            assert alive is not None, "what a recording reads must live as long as it does"
            alive()

        return play


def text(seed):
    return Conditioning(torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def clip(model, student, policy, frames=24, fuse=False, conditioning=None):
    memory = student.new_memory(policy, 1, 4, 6)
    settings = RolloutSettings(Schedule.of(3), fuse=fuse)
    made = rollout(model, conditioning or text(0), memory, SeededNoise(5, 1, 16, 4, 6), frames, settings)
    return torch.cat([block.latents for block in made], dim=2)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_rollout_with_graphs_equals_one_without(policy, fuse):
    student, tape = golden.student(), Tape()
    expected = clip(CausalModel(student), student, policy, fuse=fuse)
    model = CausalModel(CUDAGraphTransformer(student, tape))
    assert torch.equal(clip(model, student, policy, fuse=fuse), expected)
    assert 1 <= tape.recorded <= 2 < tape.played, "one recording for reading, one for writing"


def test_prompts_share_graphs_and_memories_do_not():
    student, tape = golden.student(), Tape()
    prompts = PromptSchedule([PromptChange(0, text(0)), PromptChange(15, text(1), "keep")])
    policy = MemoryPolicy("sink", 9, 3)
    expected = clip(CausalModel(student), student, policy, conditioning=prompts)
    model = CausalModel(CUDAGraphTransformer(student, tape))
    assert torch.equal(clip(model, student, policy, conditioning=prompts), expected)
    assert tape.recorded == 2, "one for reading, one for writing, under both prompts"
    for _ in range(5):  # more graphs than are kept
        assert torch.equal(clip(model, student, policy, conditioning=prompts), expected)
    assert tape.recorded == 12


def test_graphs_of_a_deleted_memory_are_not_reused():
    """Graphs are keyed by the id of a store, which a later store may get once the first is deleted."""
    student, tape, policy = golden.student(), Tape(), MemoryPolicy("sink", 9, 3)
    model = CUDAGraphTransformer(student, tape)
    clip(CausalModel(model), student, policy)
    kept = {key[0] for key in model._recordings}
    gc.collect()
    alive = {id(x) for x in gc.get_objects() if type(x) is Store}
    assert kept and kept <= alive


def test_growing_and_offloaded_memories_are_not_captured():
    student = golden.student()
    for policy in (MemoryPolicy(), MemoryPolicy("sink", 9, 3, residence="cpu")):
        tape = Tape()
        clip(CausalModel(CUDAGraphTransformer(student, tape)), student, policy)
        assert tape.recorded == 0
    memory = student.new_memory(MemoryPolicy("sink", 9, 3), 1, 4, 6)
    assert not has_fixed_shapes(memory.open(read=3)), "an empty window has other shapes than a full one"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_cuda_graphs_replay_the_captured_forward(policy):
    student = golden.student().cuda()
    noise = SeededNoise(5, 1, 16, 4, 6, device="cuda")
    clips = []
    for model in (CausalModel(student), CausalModel(CUDAGraphTransformer(student))):
        memory = student.new_memory(policy, 1, 4, 6)
        conditioning = Conditioning(text(0).text.cuda())
        with torch.no_grad():
            made = rollout(model, conditioning, memory, noise, 36, RolloutSettings(Schedule.of(3), fuse=True))
            clips.append(torch.cat([block.latents for block in made], dim=2))
    assert torch.allclose(*clips, atol=1e-4)
