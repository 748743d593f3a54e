"""StreamDiffusionV2: its recorded rollouts, its rules, and a memory that is overwritten when saved, forked, rewound."""

import dataclasses

import pytest
import torch

from salt.conditioning import Conditioning
from salt.errors import InputError
from salt.memory import MemoryFileError, MemoryPolicy, load_memory, save_memory
from salt.memory.snapshot import MemorySnapshot
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule, step_list
from salt.spec import StudentSpec
from salt.video_in.motion import MotionNoise, PixelMotion, motion_of
from salt.video_in.stream_batch import stream_batch
from tests.helpers import streamdiffusion2 as sd2
from tests.helpers import tiny_system

CASE = "sdv2_v2v_default_2step"


@pytest.fixture(scope="module")
def student():
    return sd2.student()


@pytest.mark.parametrize("case", sd2.CASES)
def test_rollout_equals_the_reference(student, case):
    error = sd2.relative_error(sd2.play(student, case), sd2.expected(case))
    print(f"{case}: relative error {error:.2e}")
    assert error <= 5e-5


@pytest.mark.parametrize("case", sd2.CASES)
def test_noise_follows_the_motion(case):
    row, video = sd2.CASES[case], sd2.video_of(case)
    found = [video.chunk(start, 1 + (start == 0), 700.0) for start in row["start_position_per_chunk"]]
    assert [scale for scale, _ in found] == pytest.approx(row["noise_scale_per_chunk"], abs=1e-6)
    assert [step for _, step in found] == row["first_step_per_chunk"]


def test_motion_of_frames_that_come_one_by_one():
    pixels = torch.rand(1, 3, 17, 8, 8) * 0.3
    whole, meter = motion_of(pixels), PixelMotion(frame for frame in pixels.split(1, dim=2))
    for start, frames, passed in ((0, 2, 5), (2, 1, 9), (3, 2, 17)):
        for _ in range(passed - (0 if start == 0 else {2: 5, 3: 9}[start])):
            next(meter)
        assert meter(start, frames) == pytest.approx(whole(start, frames)) and 0 < meter(start, frames) < 1
    assert meter(5, 1) == 0, "nothing moves after its end"


def rest_of(student, memory, frames, made):
    video = sd2.video_of(CASE)
    for block in made:  # whose noise levels later ones follow from
        video.chunk(block.start, block.stop - block.start, 700.0)
    return sd2.blocks(student, CASE, memory, frames, video=video)


@pytest.mark.parametrize("frames", [4, 9])
def test_a_memory_is_saved_forked_and_extended_exactly(student, tmp_path, frames):
    """Before and after its slots are full."""
    memory = sd2.new_memory(student, CASE)
    first = sd2.blocks(student, CASE, memory, frames)
    save_memory(memory, tmp_path / "clip.safetensors")
    loaded = load_memory(tmp_path / "clip.safetensors")
    assert loaded.overwritten == memory.overwritten and loaded.held == tuple(range(min(frames, 6)))
    snapshot = MemorySnapshot.of(memory)
    memories = {"fork": memory.fork(), "file": loaded, "snapshot": sd2.new_memory(student, CASE), "itself": memory}
    sd2.blocks(student, CASE, memories["snapshot"], 8)
    snapshot.restore(memories["snapshot"])
    for name, each in memories.items():
        rest = rest_of(student, each, 13 - frames, first)
        made = torch.cat([block.latents for block in (*first, *rest)], dim=2)
        assert sd2.relative_error(made, sd2.expected(CASE)) <= 5e-5, name


def test_rewinding_goes_to_the_start_only(student):
    memory = sd2.new_memory(student, CASE)
    first = sd2.blocks(student, CASE, memory, 8)
    with pytest.raises(InputError, match=r"frame: found 5, expected 0 or 8: slots are overwritten; go back by a saved"):
        memory.trim(5)
    memory.trim(8)
    memory.trim(0)
    assert not memory.held and not any(memory.overwritten.filled)
    again = sd2.blocks(student, CASE, memory, 8)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, again, strict=True))


def test_an_interrupted_block_is_made_again(student):
    memory = sd2.new_memory(student, CASE)
    first = sd2.blocks(student, CASE, memory, 8)

    def stop(step):
        if step.step == 1:
            raise KeyboardInterrupt

    before = memory.overwritten
    with pytest.raises(KeyboardInterrupt):
        rest_of_with(student, memory, first, stop)
    assert memory.overwritten == before and memory.next_frame == 8


def rest_of_with(student, memory, made, on_step):
    video = sd2.video_of(CASE)
    for block in made:
        video.chunk(block.start, block.stop - block.start, 700.0)
    return sd2.blocks(student, CASE, memory, 5, video=video, on_step=on_step)


def test_calls_and_bytes_do_not_grow(student):
    policy = MemoryPolicy.parse("overwrite:3,window:6")
    memory = student.new_memory(policy, 1, 4, 4)
    noise, latents = SeededNoise(0, 1, 16, 4, 4), torch.randn(1, 16, 70, 4, 4)
    settings = RolloutSettings(Schedule((700, 500), 8.0, "streamdiffusion2"), frames_per_block=1)
    video = MotionNoise(latents, lambda start, frames: 0.5, 0.8)
    held, calls, positions = set(), [], []
    with torch.no_grad():
        for block in rollout(CausalModel(student), Conditioning(torch.randn(1, 4, 64)), memory, noise, 70, settings,
                             video=video):  # fmt: skip
            held.add(memory.nbytes)
            calls.append(block.nfe)
            positions.append(policy.position(block.start))
            assert block.latents.isfinite().all()
    assert len(held) == 1 and set(calls) == {2} and len(calls) == 69
    assert positions[47:52] == [48, 49, 5, 6, 7], "positions go back to that of the last slot"
    assert len(memory.held) == 6 and memory.next_frame == 70


def test_a_batch_of_clips_has_queues_of_its_own(student):
    latents, policy = torch.randn(2, 16, 10, 4, 4), MemoryPolicy.parse("overwrite:2,window:4,refresh:0.9")
    text, noise = torch.randn(2, 4, 64), torch.randn(2, 16, 10, 4, 4)

    def play(rows):
        settings = RolloutSettings(Schedule((700, 500), 8.0, "streamdiffusion2"), frames_per_block=1)
        memory = student.new_memory(policy, len(rows), 4, 4)
        with torch.no_grad():
            made = rollout(CausalModel(student), Conditioning(text[rows]), memory, Noise(noise[rows]), 10, settings,
                           video=MotionNoise(latents[rows], lambda start, frames: 0.2, 0.8))  # fmt: skip
            return torch.cat([block.latents for block in made], dim=2)

    both = play([0, 1])
    assert torch.allclose(both, torch.cat([play([0]), play([1])]), atol=1e-4)


class Noise:
    seeds = ()

    def __init__(self, drawn):
        self.drawn = drawn

    def __call__(self, start, frames, draw):
        return self.drawn[:, :, start : start + frames] * (1 - 2 * (draw % 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("overwrite:3,window:6,int8", "precision: found int8, expected model for kind overwrite"),
        ("overwrite:3,window:6,cpu", "residence: found cpu, expected device"),
        ("overwrite:3,window:6,refresh:2", "refresh: found 2.0, expected -1"),
        ("overwrite:3,window:6,reset:4", "reset: found 4, expected 0"),
        ("overwrite:6,window:6", "window: found 6, expected more than the sink's 6"),
        ("window:6,refresh:0.5", "refresh: found 0.5 with kind window, expected kind overwrite"),
        ("window:6,reset:9", "reset: found 9 with kind window"),
    ],
)
def test_policies_that_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        MemoryPolicy.parse(text)


def test_policy_text():
    for text in ("overwrite:3,window:6,refresh:0.2,reset:50", "overwrite:2,window:5,refresh:off,reset:0"):
        assert str(MemoryPolicy.parse(text)) == text
    assert MemoryPolicy.parse("overwrite:3,window:6") == MemoryPolicy("overwrite", 6, 3)


def test_damaged_memory_files_are_refused(student, tmp_path):
    memory = sd2.new_memory(student, CASE)
    sd2.blocks(student, CASE, memory, 8)
    path = tmp_path / "clip.safetensors"
    for change, message in (
        ({"queues": memory.overwritten.queues[:1]}, "queues: found those of another model or batch"),
        ({"filled": (9,)}, "queues: found slot 9, expected at most 6"),
        ({"queues": (((),),) * len(memory.overwritten.queues)}, "queues: found an empty one of a memory that is full"),
    ):
        broken = memory.fork()
        broken.overwritten = dataclasses.replace(memory.overwritten, **change)
        save_memory(broken, path)
        with pytest.raises(MemoryFileError, match=message) as found:
            load_memory(path)
        assert "clip.safetensors" in str(found.value) and len(str(found.value)) <= 400


def test_step_lists():
    assert step_list(2, "streamdiffusion2") == (700, 500) and step_list(4, "streamdiffusion2")[-1] == 200
    calls = Schedule((700, 500), 8.0, "streamdiffusion2").calls
    assert [c.timestep for c in calls] == [700, 500] and abs(calls[0].sigma - 0.7) < 0.002


def test_stream_batch_refuses(student):
    settings = RolloutSettings(Schedule((700, 500), 8.0, "streamdiffusion2"), frames_per_block=1)
    arguments = Conditioning(torch.zeros(1, 4, 64)), student.new_memory(MemoryPolicy(), 1, 4, 4)
    video = MotionNoise(torch.zeros(1, 16, 4, 4, 4), lambda start, frames: 0.0, 0.8)
    with pytest.raises(InputError, match="memory: found full, expected an overwrite policy for a stream batch"):
        next(stream_batch(CausalModel(student), *arguments, SeededNoise(0, 1, 16, 4, 4), 4, settings, video))


def test_through_the_pipeline():
    spec = StudentSpec(1, (700, 500), 8.0, MemoryPolicy.parse("overwrite:3,window:6"), rule="streamdiffusion2")
    pipe = tiny_system.pipeline()
    pipe.spec = spec
    clip, steps = torch.rand(1, 3, 23, 32, 32) * 2 - 1, []
    chunks = list(pipe.stream("a fast red circle moving right", video=clip, seed=1, on_step=steps.append))
    assert [c.latents.shape[2] for c in chunks] == [2, 1, 1, 1, 1] and [c.pixels.shape[2] for c in chunks] == [5] + [
        4
    ] * 4
    assert len(steps) == 10 and {s.kind for s in steps} == {"denoise"} and {s.blocks for s in steps} == {5}
    assert chunks[0].memory.next_frame == 6
    copied = pipe("a fast red circle moving right", video=clip, strength=0, seed=1, output_type="latent")
    assert copied.latents.shape[2] == 6 and copied.memory.next_frame == 6
