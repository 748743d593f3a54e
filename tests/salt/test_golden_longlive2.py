"""LongLive 2.0's rollouts, reproduced through the public API, and what a memory with shots does between them."""

import pytest
import torch

from salt.conditioning import Conditioning, PromptChange, PromptSchedule
from salt.errors import InputError
from salt.memory import MemoryPolicy
from salt.memory.description import MemoryDescription
from salt.memory.inspect import as_text, held_at
from salt.memory.serialization import load_memory, save_memory
from salt.memory.snapshot import MemorySnapshot
from tests.helpers import golden
from tests.helpers import golden_longlive2 as longlive2

SMALL = "ll2_multi_shot_small"  # blocks of 2, shots at frames 6, 10 and 18


@pytest.fixture(scope="module")
def student():
    return longlive2.student()


@pytest.mark.parametrize("name", longlive2.ROLLOUTS)
def test_rollout_equals_the_reference(student, name):
    case = longlive2.Case(name)
    error = golden.relative_error(case.play(student), case.expected)
    print(f"{name}: relative error {error:.2e}")
    assert error <= 5e-5


@pytest.mark.parametrize("name", [SMALL, "ll2_multi_shot_clean_recache", "ll2_first_frame_multi_shot"])
def test_the_memory_holds_what_the_reference_holds(student, name):
    """Length and place of the pinned block after every block, in frames."""
    case = longlive2.Case(name)
    memory, found = case.memory(student), []
    for _ in case.row["memory_after_block"]:
        case.blocks(student, memory, case.block)
        shot = memory.shots[-1] if memory.shots else None
        place = -1 if shot is None else memory.held.index(shot.start)
        assert held_at(memory, memory.next_frame) == memory.held
        found.append((len(memory.held), place, 0 if shot is None else shot.pinned))
    tokens = case.row["tokens_per_frame"]
    expected = [
        (row["end_tokens"] // tokens, row["pinned_start_tokens"] // tokens, row["pinned_tokens"] // tokens)
        for row in case.row["memory_after_block"]
    ]
    assert found == expected
    assert not memory.shots or f"begin at {memory.shots[0].start}" in as_text(memory, 16)


@pytest.mark.parametrize("clean", [False, True])
def test_a_fused_rollout_with_shots_is_the_plain_one(student, clean):
    case = longlive2.Case(SMALL)
    text, other = (Conditioning(case.data["context"][:, i]) for i in (0, 3))
    policy = MemoryPolicy("shots", 8, 2, shot_offset=8, clean_shots=clean)
    prompts = PromptSchedule([PromptChange(0, text), PromptChange(6, other, "shot")])
    plain, fused = (
        case.play(student, student.new_memory(policy, 1, *case.noise.shape[3:]), prompts=prompts, fuse=fuse)
        for fuse in (False, True)
    )
    assert golden.relative_error(fused, plain) <= 5e-6


@pytest.mark.parametrize("way", ["file", "fork", "snapshot"])
def test_a_memory_with_shots_goes_on_exactly(student, tmp_path, way):
    case = longlive2.Case(SMALL)
    whole = case.play(student)
    for frames in (8, 14):  # inside a shot: pinned, but not yet behind the sink; and where it is
        memory = case.memory(student)
        case.blocks(student, memory, frames)
        if way == "file":
            save_memory(memory, tmp_path / "memory.safetensors")
            memory = load_memory(tmp_path / "memory.safetensors")
        elif way == "fork":
            original, memory = memory, memory.fork()
            case.blocks(student, original, 4)
        else:
            snapshot, policy = MemorySnapshot.of(memory), memory.policy
            case.blocks(student, memory, 4)
            memory.renew(0, MemoryPolicy())
            snapshot.restore(memory)
            assert memory.policy == policy
        assert torch.equal(case.play(student, memory), whole[:, :, frames:])


def test_a_rewind_takes_shots_back(student):
    case = longlive2.Case(SMALL)
    memory = student.new_memory(MemoryPolicy("shots", 22, 2, shot_offset=8), 1, *case.noise.shape[3:])
    blocks = case.blocks(student, memory, 14)
    memory.trim(8)
    assert [shot.start for shot in memory.shots] == [6]
    again = case.blocks(student, memory, 6)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(blocks[4:], again, strict=True))


def test_a_shot_has_a_text_for_its_first_block(student):
    case = longlive2.Case(SMALL)
    first, bare = (Conditioning(case.data["context"][:, i]) for i in (3, 4))
    start = PromptChange(0, Conditioning(case.data["context"][:, 0]))
    one = PromptSchedule([start, PromptChange(6, bare, "shot", first_block=first)])
    two = PromptSchedule([start, PromptChange(6, first, "shot"), PromptChange(8, bare)])
    made = [[b.latents for b in case.blocks(student, case.memory(student), 12, prompts)] for prompts in (one, two)]
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_shot_needs_a_policy_with_shots(student):
    case = longlive2.Case(SMALL)
    memory = student.new_memory(MemoryPolicy("sink", 8, 2), 1, *case.noise.shape[3:])
    with pytest.raises(InputError, match="shots:8,window:32"):
        case.blocks(student, memory, 8)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"slots": (0, 0, 1)}, "slots"),
        ({"slots": (0, 1)}, "slots"),
        ({"slots": (0, 1, 9)}, "slots"),
        ({"shots": ({"start": 9},)}, "shots"),
        ({"shots": ({"start": 2}, {"start": 1})}, "shots"),
    ],
)
def test_a_description_of_shots_is_checked(values, named):
    from salt.io.fields import read_fields

    good = {
        "policy": MemoryPolicy("shots", 8, 2).to_dict(), "dtype": "float32", "fingerprint": "", "held": [0, 1, 2],
        "geometry": {"layers": 1, "heads": 1, "head_dim": 12, "height": 2, "width": 2, "batch": 1},
        "origin": 0, "next_frame": 3, "context_sigma": 0.0, "slots": [0, 1, 2], "shots": [{"start": 2, "pinned": 1}],
    }  # fmt: skip
    assert read_fields(MemoryDescription, good).shots[0].pinned == 1
    with pytest.raises(ValueError, match=named):
        read_fields(MemoryDescription, {**good, **{k: list(v) for k, v in values.items()}})
