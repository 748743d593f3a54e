"""Krea realtime: its recorded rollouts, and a memory that is rebuilt when it is saved, forked, rewound or steered."""

import pytest
import torch

from salt.conditioning import Conditioning, PromptChange, PromptSchedule, blend_changes
from salt.errors import InputError
from salt.memory import MemoryPolicy, load_memory, save_memory
from salt.memory.clean_latents import EMPTY
from salt.memory.snapshot import MemorySnapshot
from salt.models.causal_model import CausalModel
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule, step_list
from salt.video_in.strength import Strength
from tests.helpers import krea
from tests.helpers.recorded_noise import RecordedNoise


@pytest.fixture(scope="module")
def student():
    return krea.student()


@pytest.mark.parametrize("case", krea.CASES)
def test_rollout_equals_the_reference(student, case):
    error = krea.relative_error(krea.play(student, case), krea.expected(case))
    print(f"{case}: relative error {error:.2e}")
    assert error <= 5e-5


def test_a_rebuilt_memory_is_saved_forked_and_extended_exactly(student, tmp_path):
    case = "krea_recompute_5step"
    memory = krea.new_memory(student, case)
    first = krea.blocks(student, case, memory, krea.RecordedHeads(case), frames=9)
    save_memory(memory, tmp_path / "clip.safetensors")
    loaded = load_memory(tmp_path / "clip.safetensors")
    assert loaded.held == memory.held == (6, 7, 8) and loaded.nbytes == memory.nbytes
    snapshot = MemorySnapshot.of(memory)
    memories = {"fork": memory.fork(), "file": loaded, "snapshot": krea.new_memory(student, case), "itself": memory}
    snapshot.restore(memories["snapshot"])
    for name, each in memories.items():
        rest = krea.blocks(student, case, each, krea.RecordedHeads(case, first_block=3), frames=6)
        made = torch.cat([block.latents for block in (*first, *rest)], dim=2)
        assert krea.relative_error(made, krea.expected(case)) <= 5e-5, name


@pytest.mark.parametrize("case", ["krea_memory6_4step", "krea_start_frame", "krea_keep_first_frame_4step"])
def test_a_rewound_memory_is_rebuilt_from_the_latents_of_its_clip(student, case):
    memory = krea.new_memory(student, case)
    heads = krea.RecordedHeads(case)
    made = krea.blocks(student, case, memory, heads)
    clip = torch.cat([x for x in (krea.initial_latents(case), *(b.latents for b in made)) if x is not None], dim=2)
    given = clip.shape[2] - krea.expected(case).shape[2]
    memory.trim(given + 9)
    with pytest.raises(ValueError, match="rewound"):
        save_memory(memory, "never.safetensors")
    with pytest.raises(InputError, match="history_latents: found 0 latent frames, expected the clip's up to latent"):
        krea.blocks(student, case, memory, heads, frames=3, initial=False)
    again = krea.blocks(student, case, memory, krea.RecordedHeads(case), frames=clip.shape[2] - given - 9,
                        initial=False, history_latents=clip[:, :, : given + 9])  # fmt: skip
    for old, new in zip(made[3:], again, strict=True):
        assert torch.equal(old.latents, new.latents)


def test_an_interrupted_rebuild_is_made_up_for(student):
    case = "krea_recompute_5step"
    memory, calls = krea.new_memory(student, case), []

    def model_stops(step):
        calls.append(step.kind)
        if calls.count("context") == 3:
            memory.open(write=3, start=6)  # as a forward that was interrupted has opened it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        krea.blocks(student, case, memory, krea.RecordedHeads(case), on_step=model_stops)
    assert memory.next_frame == 6 and not memory.held
    rest = krea.blocks(student, case, memory, krea.RecordedHeads(case, first_block=2), frames=9)
    made = torch.cat([block.latents for block in rest], dim=2)
    assert krea.relative_error(made, krea.expected(case)[:, :, 6:]) <= 5e-5


def test_recache_rebuilds_with_the_new_prompt_and_cut_begins_anew(student):
    case = "krea_recompute_5step"
    kept, recached, cut = (_with_change(student, case, switch) for switch in ("keep", "recache", "cut"))
    assert torch.equal(kept[0], recached[0]) and not torch.equal(kept[1], recached[1])
    fresh = _with_change(student, case, "cut", frames=3, start=6)
    assert torch.equal(cut[1], fresh[0])


def _with_change(student, case, switch, frames=9, start=0):
    """Latents of 6 frames, and of the block after them with another prompt."""
    memory, contexts = krea.new_memory(student, case), krea.tensors(case)["context"]
    memory.origin = memory.next_frame = start
    prompts = PromptSchedule(
        [PromptChange(0, Conditioning(contexts[:, 0])), PromptChange(6, Conditioning(-contexts[:, 0]), switch)]
    )
    settings = RolloutSettings(krea.schedule_of(case))
    with torch.no_grad():
        blocks = rollout(CausalModel(student), prompts, memory, krea.noise_of(case), frames, settings,
                         reencode=lambda latents: latents[:, :, :1])  # fmt: skip
        clip = torch.cat([block.latents for block in blocks], dim=2)
    return clip[:, :, :-3] if start == 0 else clip, clip[:, :, -3:]


def test_what_a_rebuilt_memory_needs_is_said(student):
    assert [str(MemoryPolicy.parse(x)) for x in ("rebuild:6", "rebuild:3,keep,int8,cpu")] == [
        "rebuild:6", "rebuild:3,keep,int8,cpu"
    ]  # fmt: skip
    for text in ("keep", "rebuild:0", "rebuild:3,window:9", "sink:1,window:9,keep", "rebuild:x", "rebuild:3,sink:1"):
        with pytest.raises(InputError, match="memory_policy|window"):
            MemoryPolicy.parse(text)
    with pytest.raises(InputError, match="window: found 4, expected a multiple of the block of 3 latent frames"):
        MemoryPolicy.parse("rebuild:4").check_block(3)
    case = "krea_recompute_5step"
    with pytest.raises(InputError, match="rebuild:3,keep keeps the first frame"):
        krea.blocks(student, case, krea.new_memory(student, case), None)


@pytest.mark.parametrize("storage", ["int8", "cpu", "int8,cpu"])
def test_a_rebuilt_memory_stored_otherwise(student, storage):
    """The memory holds as many frames as it is rebuilt from, and the block is read beside them."""
    case = "krea_keep_first_frame_4step"
    memory = krea.new_memory(student, case)
    other = student.new_memory(MemoryPolicy.parse(f"rebuild:3,keep,{storage}"), 1, 4, 6)
    clips = [torch.cat([b.latents for b in krea.blocks(student, case, m, None)], dim=2) for m in (memory, other)]
    assert krea.relative_error(clips[1], clips[0]) <= (5e-2 if "int8" in storage else 0)
    assert memory.nbytes == memory.estimate_bytes(400) == memory.estimate_bytes(3)


def test_a_prompt_blended_over_blocks_has_the_recorded_texts():
    case = "krea_prompt_interpolation4"
    context, ((block, count),) = krea.tensors(case)["context"], krea.CASES[case]["interpolation"]
    old, new = Conditioning(context[:, block]), Conditioning(context[:, block + count - 1])
    prompts = PromptSchedule([PromptChange(0, old), *blend_changes(old, new, 3 * block, count)])
    for index in range(context.shape[1]):
        assert torch.allclose(prompts.at(3 * index).conditioning.text, context[:, index], atol=1e-6), index
    assert [c.frame for c in blend_changes(old, new, 6, 1)] == [6]


@pytest.mark.parametrize("policy", ["rebuild:3", "rebuild:9", "rebuild:6,keep"])
def test_what_a_memory_is_rebuilt_from_does_not_grow_with_the_clip(policy):
    policy, clean, sizes = MemoryPolicy.parse(policy), EMPTY, set()
    for block in range(700):
        latents = torch.full((1, 2, 3, 4, 4), float(block))
        clean = clean.with_block(latents, policy, False, lambda x: -x[:, :, :1])
        if block > 3:
            sizes.add(clean.nbytes)
    blocks = policy.slots(100) // 3
    head = 0.0 if policy.sink else -float(700 - blocks)
    rest = [float(block) for block in range(700 - blocks, 700) for _ in range(3)][1:]
    assert len(sizes) == 1 and clean.source()[0, 0, :, 0, 0].tolist() == [head, *rest]


@pytest.mark.parametrize("case", krea.CASES)
def test_steps_are_the_recorded_ones(case):
    row, schedule = krea.CASES[case], krea.schedule_of(case)
    assert schedule.timesteps == pytest.approx(row["timesteps"], abs=1e-3)
    assert [call.sigma for call in schedule.calls[:-1]] == pytest.approx(
        [t / 1000 for t in row["timesteps"][:-1]], abs=1e-6
    )
    last = schedule.calls[-1]
    assert (last.timestep, last.sigma, last.next_sigma) == (0.0, pytest.approx(0.005 / 1.004), 0.0)


def test_another_shift_changes_the_steps_and_not_the_table_of_x0():
    calls = Schedule((1000, 500, 0), 8.0, "krea").calls
    assert [call.timestep for call in calls] == pytest.approx([1000, 8000 / 9, 0])
    assert [call.next_sigma for call in calls] == pytest.approx([8 / 9, 0.008 / 1.007, 0])
    assert [call.sigma for call in calls] == pytest.approx([1, 8 / 9, 0.005 / 1.004], abs=2e-4)
    assert abs(calls[1].sigma - 8 / 9) > 1e-6, "the nearest of the table's levels"
    assert step_list(5, "krea", 0.45) == (450, 337, 225, 112, 0)
    with pytest.raises(
        InputError, match=r"steps: found \[500.0, 0.0\], expected strictly falling values in \(0, 1000\]"
    ):
        Schedule((500, 0))


def test_video_to_video_of_the_engine_equals_the_reference(student):
    case = "krea_v2v_strength07"
    source, drawn = (krea.tensors(case)[name].transpose(1, 2) for name in ("source_latents", "source_noise"))
    settings = RolloutSettings(Schedule(step_list(krea.CASES[case]["steps"], "krea"), rule="krea"))
    noise = RecordedNoise(drawn, krea.tensors(case)["renoise"].transpose(2, 3))
    with torch.no_grad():
        blocks = rollout(CausalModel(student), krea.prompts_of(case), krea.new_memory(student, case), noise,
                         source.shape[2], settings, reencode=krea.RecordedHeads(case),
                         video=Strength(source, 0.7))  # fmt: skip
        clip = torch.cat([block.latents for block in blocks], dim=2)
    assert krea.relative_error(clip, krea.expected(case)) <= 5e-5
