"""A rollout that goes on from what an earlier one has made, and one that is ended early: equal to the bit."""

import pytest
import torch

from salt.conditioning import Conditioning, PromptChange, PromptSchedule
from salt.memory import MemoryPolicy
from salt.memory.snapshot import MemorySnapshot
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers import golden

POLICIES = ["full", "window:9", "sink:3,window:9", "relative:3,window:9", "blended:3,window:9", "window:6,int8"]
FUSED = RolloutSettings(Schedule.of(2), fuse=True)


@pytest.fixture(scope="module")
def student():
    return golden.student()


def text(seed):
    return Conditioning(torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(seed)))


def prompts(last, frame, switch="recache"):
    changes = [PromptChange(0, text(0)), PromptChange(3, text(1), "recache"), PromptChange(frame, text(last), switch)]
    return PromptSchedule(changes)


def make(student, policy, schedule, frames, memory=None, settings=FUSED, **options):
    """Blocks, each with the memory as it was when the block was yielded; then the memory."""
    memory = student.new_memory(MemoryPolicy.parse(policy), 1, 4, 6) if memory is None else memory
    noise, found = SeededNoise(5, 1, 16, 4, 6), []
    with torch.no_grad():
        for block in rollout(CausalModel(student), schedule, memory, noise, frames, settings, **options):
            found.append((block, MemorySnapshot.of(memory)))
    return found, memory


def latents_of(found):
    return torch.cat([block.latents for block, _ in found], dim=2)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_made_blocks_are_not_sampled_and_what_follows_is_the_same_to_the_bit(student, policy, first):
    """The last prompt is another one; blocks 0 to 3 are as before. The snapshot is of block `first`."""
    before, _ = make(student, policy, prompts(2, 12, "cut"), 15)
    whole, memory = make(student, policy, prompts(3, 12), 18)
    kept = latents_of(before)[:, :, :12]
    assert torch.equal(kept, latents_of(whole)[:, :, :12])
    assert not torch.equal(latents_of(before)[:, :, 12:], latents_of(whole)[:, :, 12:15])
    other = student.new_memory(MemoryPolicy.parse(policy), 1, 4, 6)
    before[first][1].restore(other)
    start = before[first][0].start
    options = {"made_latents": kept[:, :, start:], "history_latents": kept[:, :, :start]}
    again, other = make(student, policy, prompts(3, 12), 18 - start, other, **options)
    assert torch.equal(latents_of(again), latents_of(whole)[:, :, start:])
    assert [block.nfe for block, _ in again][0] == 0, "the first of them is not sampled"
    assert other.held == memory.held and other.next_frame == 18
    rows = [(m.slot_index(m.held), m.store.buffers[0][0]) for m in (other, memory)]
    assert torch.equal(*(buffer[:, index] for index, buffer in rows))


def test_a_longer_clip_goes_on_from_the_last_block(student):
    before, _ = make(student, "full", prompts(2, 9), 12)
    whole, _ = make(student, "full", prompts(2, 9), 18)
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    before[-1][1].restore(memory)
    options = {"made_latents": latents_of(before)[:, :, 9:], "history_latents": latents_of(before)[:, :, :9]}
    again, _ = make(student, "full", prompts(2, 9), 9, memory, **options)
    assert torch.equal(latents_of(again), latents_of(whole)[:, :, 9:])


@pytest.mark.parametrize("fuse", [False, True])
def test_a_rollout_that_is_ended_has_all_its_blocks_in_the_memory(student, fuse):
    settings = RolloutSettings(Schedule.of(2), fuse=fuse)
    asked = []
    found, memory = make(
        student, "full", prompts(2, 9), 18, settings=settings, ends=lambda: asked.append(1) or len(asked) == 2
    )
    short, expected = make(student, "full", prompts(2, 9), 6, settings=settings)
    assert torch.equal(latents_of(found), latents_of(short)) and memory.next_frame == 6
    assert torch.equal(memory.store.buffers[0][0][:, :6], expected.store.buffers[0][0][:, :6])
    without_end, _ = make(student, "full", prompts(2, 9), None, settings=settings, ends=lambda: True)
    assert len(without_end) == 1, "it is asked after the first block"
