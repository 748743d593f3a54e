"""Guarantees of the rollout: extension, prompt changes, guidance, cancelling, seeds."""

from itertools import islice

import pytest
import torch

from salt.conditioning import Conditioning, PromptChange, PromptSchedule
from salt.memory import MemoryPolicy, load_memory, save_memory
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers import golden

EXACT_POLICIES = [
    MemoryPolicy(),
    MemoryPolicy("window", 9),
    MemoryPolicy("sink", 9, 3),
    MemoryPolicy("sink", 8, 2),
    MemoryPolicy("relative", 9, 1),
    MemoryPolicy("cyclic", 9),
    MemoryPolicy("sink", 9, 3, precision="int8"),
]
TWO_STEPS = RolloutSettings(Schedule.of(2))


@pytest.fixture(scope="module")
def student():
    return golden.student()


def text(seed, batch=1):
    return Conditioning(torch.randn(batch, 12, 64, generator=torch.Generator().manual_seed(seed)))


def blocks(
    student, frames, memory=None, conditioning=None, settings=TWO_STEPS, seed=5, batch=1, policy=None, **options
):
    memory = memory or student.new_memory(policy or MemoryPolicy(), batch, 4, 6)
    noise = SeededNoise(seed, batch, 16, 4, 6)
    with torch.no_grad():
        yield from rollout(
            CausalModel(student), conditioning or text(0, batch), memory, noise, frames, settings, **options
        )


def clip(student, frames, **options):
    return torch.cat([b.latents for b in blocks(student, frames, **options)], dim=2)


@pytest.mark.parametrize("policy", EXACT_POLICIES, ids=str)
def test_an_extended_clip_is_the_longer_clip_to_the_bit(student, policy, tmp_path):
    whole = clip(student, 21, policy=policy)
    memory = student.new_memory(policy, 1, 4, 6)
    first = clip(student, 12, memory=memory)
    save_memory(memory, tmp_path / "m.safetensors")
    again = load_memory(tmp_path / "m.safetensors", geometry=memory.geometry, fingerprint=memory.fingerprint)
    assert torch.equal(torch.cat([first, clip(student, 9, memory=again)], 2), whole)


def test_a_block_does_not_depend_on_the_clip_length(student):
    assert torch.equal(clip(student, 6), clip(student, 15)[:, :, :6])


def test_a_rollout_without_end_is_the_beginning_of_any_longer_one(student):
    made = list(islice(blocks(student, None, policy=MemoryPolicy("window", 9)), 5))
    assert torch.equal(torch.cat([b.latents for b in made], 2), clip(student, 15, policy=MemoryPolicy("window", 9)))
    assert [(b.index, b.count) for b in made] == [(i, 0) for i in range(5)]


def test_batch_rows_are_the_single_clips(student):
    both = clip(student, 6, batch=2, seed=(5, 11))
    assert torch.allclose(both[:1], clip(student, 6, seed=5, conditioning=_row(0)), atol=1e-5)
    assert torch.allclose(both[1:], clip(student, 6, seed=11, conditioning=_row(1)), atol=1e-5)


def _row(i):
    return Conditioning(text(0, 2).text[i : i + 1])


def test_blocks_report_range_evaluations_and_seed(student):
    made = list(blocks(student, 6))
    assert [(b.index, b.count, b.start, b.stop) for b in made] == [(0, 2, 0, 3), (1, 2, 3, 6)]
    assert made[0].nfe == 2 and made[0].seeds == (5,) and made[0].seconds > 0
    assert list(blocks(student, 3, settings=RolloutSettings(Schedule.of(8))))[0].nfe == 8


def test_fused_passes_save_one_evaluation_per_block(student):
    def calls(fuse):
        steps = []
        clip(student, 9, settings=RolloutSettings(Schedule.of(2), fuse=fuse), on_step=steps.append)
        return len(steps)

    assert calls(False) == 9 and calls(True) == 7


def test_ode_takes_euler_steps_and_needs_no_new_noise(student):
    sde = clip(student, 3)
    ode = clip(student, 3, settings=RolloutSettings(Schedule.of(2), "ode"))
    assert not torch.allclose(sde, ode, atol=1e-3)
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    x = SeededNoise(5, 1, 16, 4, 6)(0, 3, 0)
    for a, b in ((1.0, 5 / 6), (5 / 6, 0.0)):
        with torch.no_grad():
            flow = CausalModel(student)(ModelInput(x, torch.full((1, 3), 1000 * a), text(0), memory.open(read=3)))
        x = x - (a - b) * flow
    assert torch.allclose(ode, x, atol=1e-5)


def test_independent_first_frame(student):
    settings = RolloutSettings(Schedule.of(2), independent_first_frame=True)
    assert [b.stop - b.start for b in blocks(student, 7, settings=settings)] == [1, 3, 3]
    with pytest.raises(
        ValueError,
        match="found 8 latent frames, expected a multiple of the block of 3 after a first one of 1 .*7 or 10",
    ):
        list(blocks(student, 8, settings=settings))


def test_a_length_that_is_not_whole_blocks(student):
    with pytest.raises(
        ValueError, match=r"frames: found 20 latent frames, expected a multiple of the block of 3 \(18 or 21\)"
    ):
        list(blocks(student, 20))


def test_window_too_small_for_the_block(student):
    with pytest.raises(ValueError, match="window: found 4, expected at least 6"):
        list(blocks(student, 3, policy=MemoryPolicy("sink", 4, 3)))


def test_guidance_mixes_two_memories(student):
    settings = RolloutSettings(Schedule.of(2), guidance=3.0)
    with pytest.raises(ValueError, match="guidance=3.0 needs a negative"):
        list(blocks(student, 3, settings=settings))
    guided = clip(student, 6, settings=settings, negative=text(9))
    assert not torch.allclose(guided, clip(student, 6), atol=1e-3)
    same = clip(student, 6, settings=settings, negative=text(0))
    assert torch.allclose(same, clip(student, 6), atol=1e-5), "guidance between equal prompts changes nothing"


def test_a_guide_evaluates_the_denoising_steps_and_nothing_else(student):
    """The linear combination as a guide, beside `guidance`: fused or not, on the same memories."""
    model, seen = CausalModel(student), []

    def linear(branches):
        seen.append([inputs.memory.start_frame for inputs in branches])
        conditional, unconditional = (model(inputs) for inputs in branches)
        return unconditional + 3 * (conditional - unconditional)

    plain = RolloutSettings(Schedule.of(2), guidance=3.0)
    fused = RolloutSettings(Schedule.of(2), guidance=3.0, fuse=True)
    expected = clip(student, 6, settings=plain, negative=text(7))
    guided = clip(student, 6, settings=fused, negative=text(7), guide=linear)
    assert torch.allclose(guided, expected, atol=1e-5)
    assert seen == [[0, 0], [0, 0], [3, 3], [3, 3]], "two steps per block, on both branches; no context pass"
    once = clip(student, 6, guide=lambda branches: model(branches[0]))
    assert torch.allclose(once, clip(student, 6), atol=1e-5), "a guide without a negative has one branch"


def test_cancelling_between_steps_leaves_the_memory_usable(student):
    class Cancelled(Exception):
        pass

    def cancel(step):
        if (step.block, step.step) == (2, 1):
            raise Cancelled

    memory = student.new_memory(MemoryPolicy("window", 9), 1, 4, 6)
    made = []
    with pytest.raises(Cancelled):
        made.extend(b.latents for b in blocks(student, 12, memory=memory, on_step=cancel))
    assert memory.next_frame == 6
    resumed = clip(student, 6, memory=memory)
    assert torch.equal(resumed, clip(student, 12, policy=MemoryPolicy("window", 9))[:, :, 6:])


def test_initial_latents_are_context(student):
    start = torch.randn(1, 16, 1, 4, 6)
    made = list(blocks(student, 6, initial_latents=start))
    assert [(b.start, b.stop) for b in made] == [(1, 4), (4, 7)]
    other = clip(student, 6, initial_latents=start + 1)
    assert not torch.allclose(torch.cat([b.latents for b in made], 2), other, atol=1e-3)


def test_the_prompt_changes_at_its_block(student):
    schedule = PromptSchedule([PromptChange(0, text(0)), PromptChange(4, text(1))])
    changed, plain = clip(student, 9, conditioning=schedule), clip(student, 9)
    assert torch.equal(changed[:, :, :6], plain[:, :, :6]), (
        "frame 4 lies inside block 1: it finishes under the old prompt"
    )
    assert not torch.allclose(changed[:, :, 6:], plain[:, :, 6:], atol=1e-3)


def test_cut_empties_the_memory(student):
    schedule = PromptSchedule([PromptChange(0, text(0)), PromptChange(6, text(1), "cut")])
    memory = student.new_memory(MemoryPolicy("sink", 9, 3), 1, 4, 6)
    made = clip(student, 9, conditioning=schedule, memory=memory)
    fresh = student.new_memory(MemoryPolicy("sink", 9, 3), 1, 4, 6)
    fresh.next_frame = fresh.origin = 6
    assert torch.equal(made[:, :, 6:], clip(student, 3, conditioning=text(1), memory=fresh))
    assert memory.origin == 6 and memory.held == (6, 7, 8)


@pytest.mark.parametrize("policy", [MemoryPolicy(), MemoryPolicy("sink", 9, 3), MemoryPolicy("window", 9)], ids=str)
@pytest.mark.parametrize("cut_at_once", [True, False])
def test_recache_after_a_cut_encodes_the_new_scene_alone(student, policy, cut_at_once):
    """In one rollout, and in an extension with the whole clip's latents."""
    changes = [PromptChange(0, text(0)), PromptChange(6, text(1), "cut"), PromptChange(9, text(2), "recache")]
    memory = student.new_memory(policy, 1, 4, 6)
    before = clip(student, 6 if cut_at_once else 9, conditioning=PromptSchedule(changes), memory=memory)
    made = clip(
        student, 12 - before.shape[2], conditioning=PromptSchedule(changes), memory=memory, history_latents=before
    )
    clean = torch.cat([before, made], 2)[:, :, 6:9]
    fresh = student.new_memory(policy, 1, 4, 6)
    fresh.next_frame = fresh.origin = 6
    expected = clip(student, 3, conditioning=text(2), memory=fresh, initial_latents=clean)
    assert golden.relative_error(made[:, :, -3:], expected) < 2e-6


@pytest.mark.parametrize("switch", ["recache", "cut"])
def test_two_changes_within_a_block_both_switch_the_memory(student, switch):
    """Both take effect at frame 6: the first one's switch is applied to the memory, the second one's prompt is used."""
    overtaken = [PromptChange(0, text(0)), PromptChange(4, text(1), switch), PromptChange(5, text(2))]
    alone = [PromptChange(0, text(0)), PromptChange(5, text(2), switch)]
    made, expected = (clip(student, 9, conditioning=PromptSchedule(changes)) for changes in (overtaken, alone))
    assert torch.equal(made, expected)


def test_a_cut_empties_the_unconditional_memory_too(student):
    settings = RolloutSettings(Schedule.of(2), guidance=3.0)
    schedule = PromptSchedule([PromptChange(0, text(0)), PromptChange(6, text(1), "cut")])
    made = clip(student, 9, conditioning=schedule, settings=settings, negative=text(9))
    fresh, unconditional = (student.new_memory(MemoryPolicy(), 1, 4, 6) for _ in range(2))
    for memory in (fresh, unconditional):
        memory.next_frame = memory.origin = 6
    options = {"settings": settings, "negative": text(9), "negative_memory": unconditional}
    assert torch.equal(made[:, :, 6:], clip(student, 3, conditioning=text(1), memory=fresh, **options))


@pytest.mark.parametrize("switch", ["recache", "cut"])
def test_a_change_inside_the_last_block_takes_effect_in_the_extension(student, switch):
    schedule = PromptSchedule([PromptChange(0, text(0)), PromptChange(7, text(1), switch)])
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    first = clip(student, 9, conditioning=schedule, memory=memory)
    extended = clip(student, 3, conditioning=schedule, memory=memory, history_latents=first)
    assert torch.equal(torch.cat([first, extended], 2), clip(student, 12, conditioning=schedule))


@pytest.mark.parametrize("policy", [MemoryPolicy(), MemoryPolicy("sink", 9, 3), MemoryPolicy("blended", 9, 3)], ids=str)
def test_recache_rewrites_the_memory_under_the_new_prompt(student, policy):
    """Equal to context passes of the same clean latents, block by block, under the new prompt."""
    schedule = PromptSchedule([PromptChange(0, text(0)), PromptChange(12, text(1), "recache")])
    made = clip(student, 15, conditioning=schedule, policy=policy)
    memory = student.new_memory(policy, 1, 4, 6)
    first = 12 - min(policy.window or 12, 12)
    memory.next_frame = memory.origin = first
    expected = clip(student, 3, conditioning=text(1), memory=memory, initial_latents=made[:, :, first:12])
    assert golden.relative_error(made[:, :, 12:], expected) < 2e-6


def test_recache_can_keep_the_sink(student):
    def memory_after(keep_sink):
        change = PromptChange(12, text(1), "recache", keep_sink)
        memory = student.new_memory(MemoryPolicy("sink", 9, 3), 1, 4, 6)
        clip(student, 15, conditioning=PromptSchedule([PromptChange(0, text(0)), change]), memory=memory)
        return memory

    assert memory_after(True).held[:3] == (0, 1, 2) and memory_after(False).held[:3] == (3, 4, 5)


def test_recache_in_an_extension_needs_the_latents(student):
    memory = student.new_memory(MemoryPolicy("window", 9), 1, 4, 6)
    before = clip(student, 9, memory=memory)
    schedule = PromptSchedule([PromptChange(0, text(0)), PromptChange(9, text(1), "recache")])
    with pytest.raises(ValueError, match="history_latents is needed"):
        clip(student, 3, memory=memory.fork(), conditioning=schedule)
    extended = clip(student, 3, memory=memory, conditioning=schedule, history_latents=before)
    assert (
        golden.relative_error(
            extended, clip(student, 12, conditioning=schedule, policy=MemoryPolicy("window", 9))[:, :, 9:]
        )
        < 2e-6
    )


def test_fused_rollout_with_a_prompt_change(student):
    schedule = PromptSchedule([PromptChange(0, text(0)), PromptChange(6, text(1))])
    fused = clip(student, 12, conditioning=schedule, settings=RolloutSettings(Schedule.of(2), fuse=True))
    assert golden.relative_error(fused, clip(student, 12, conditioning=schedule)) < 2e-6


def test_no_number_is_copied_to_the_device_inside_a_block(student, monkeypatch):
    """Such a copy makes the host wait for a GPU (test_sync.py checks it on a GPU, this test anywhere)."""

    def forbid(make):
        def made(*values, device=None, **options):
            assert device is None, f"torch.{make.__name__} of {values} straight to {device}"
            return make(*values, **options)

        return made

    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, forbid(getattr(torch, name)))
    for stepping in ("sde", "ode"):
        clip(student, 6, settings=RolloutSettings(Schedule.of(2), stepping))


def test_context_noise_is_written_and_remembered(student):
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    noisy = clip(student, 6, memory=memory, settings=RolloutSettings(Schedule.of(2), context_timestep=100.0))
    assert memory.context_sigma == pytest.approx(0.1)
    plain = clip(student, 6)
    assert torch.equal(noisy[:, :, :3], plain[:, :, :3]) and not torch.allclose(noisy, plain, atol=1e-3)


def test_invalid_schedules_and_settings():
    with pytest.raises(ValueError, match="the first at 0"):
        PromptSchedule([PromptChange(3, text(0))])
    with pytest.raises(ValueError, match="switch: found 'fade'"):
        PromptChange(0, text(0), "fade")
    with pytest.raises(ValueError, match="stepping: found 'heun'"):
        RolloutSettings(stepping="heun")
    with pytest.raises(ValueError, match="frames_per_block: found 0"):
        RolloutSettings(frames_per_block=0)
    with pytest.raises(ValueError, match="found 3 seeds, expected one per batch row"):
        SeededNoise((1, 2, 3), 2, 16, 4, 6)


def test_stepping_per_transition(student):
    def made(stepping):
        return clip(student, 3, settings=RolloutSettings(Schedule.of(4), stepping))

    assert torch.equal(made(("sde",) * 3), made("sde")) and torch.equal(made(("ode",) * 3), made("ode"))
    mixed = made(("ode", "sde", "ode"))
    assert not torch.allclose(mixed, made("sde"), atol=1e-3) and not torch.allclose(mixed, made("ode"), atol=1e-3)
    with pytest.raises(ValueError, match="a tuple of 3 sde or ode"):
        RolloutSettings(Schedule.of(4), ("sde", "ode"))
