"""Sessions that go on from a memory, or begin with a picture: equal to the rollout, steered, rewound and replayed."""

import json

import pytest
import torch

from salt.cli import generation  # noqa: F401 - which imports load_pipeline before a test replaces it
from salt.errors import InputError
from salt.live.controls import Fork, Guidance, Policy, Prompt, Rewind
from salt.live.engine import LiveEngine
from salt.live.pipeline_host import PipelineHost
from salt.live.replay import check_start, parse_replay, play, replay_engine, replay_of
from salt.live.result import result_of
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from salt.live.start import LiveStart
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers import tiny_system
from tests.live.test_exact import play as run

RED, BLUE = "a red circle moving right", "a blue square moving up"
FREE = dict(nfe=2, pace="free")


@pytest.fixture(scope="module")
def host():
    return PipelineHost(tiny_system.pipeline())


@torch.no_grad()
def clip(host, policy, blocks=4, guidance=1.0):
    """Memory, unconditional memory and latents of a clip."""
    memory = host.new_memory(LiveSettings(RED, policy=policy).steering(host.info.policy).policy)
    negative = memory.empty_like() if guidance != 1.0 else None
    settings = RolloutSettings(Schedule.of(2), guidance=guidance)
    empty = host.encode(BLUE) if negative is not None else None
    made = rollout(
        host.model, host.encode(RED), memory, host.noise(3), 3 * blocks, settings, negative=empty,
        negative_memory=negative,
    )  # fmt: skip
    return memory, negative, torch.cat([b.latents for b in made], dim=2)


@torch.no_grad()
def offline(host, prompts, memory, frames, **inputs):
    blocks = rollout(host.model, prompts, memory, host.noise(5), frames, RolloutSettings(Schedule.of(2)), **inputs)
    return torch.cat([b.latents for b in blocks], dim=2)


@pytest.mark.parametrize("policy", ["full", "sink:3,window:9", "relative:3,window:12,int8"])
def test_a_session_from_a_memory_is_its_extension(host, policy):
    """Prompts that recache and cut, a rewind to the beginning, and the memory that was given is as it was."""
    memory, _, latents = clip(host, policy)
    before = LiveStart(memory=memory, history=latents).digest
    start = LiveStart(memory=memory, history=latents)
    decodes = policy == "full"  # which is what takes the time
    engine = LiveEngine(host, LiveSettings(RED, seed=5, **FREE), decodes, start)
    assert engine.rewind_from(engine.branch) == 0 and engine.branch.end == 12
    run(engine, 2)
    made, frames = run(engine, 5, {0: [Rewind(0.0)], 1: [Prompt.of(BLUE, "recache")], 4: [Prompt.of(RED, "cut")]})
    result = result_of(engine, None)
    assert [f.shape[0] for f in frames] == [12] * 5 * decodes and result.start == 12
    assert torch.equal(result.latents, torch.cat(made, dim=2))
    again = offline(host, result.prompts, memory.fork(), 15, history_latents=latents)
    assert torch.equal(result.latents, again) and result.memory.next_frame == 27
    assert LiveStart(memory=memory, history=latents).digest == before and memory.next_frame == 12
    later = LiveEngine(host, LiveSettings(RED, seed=5, **FREE), False, LiveStart(memory=memory))
    first, _ = run(later, 1)
    assert torch.equal(first[0], again[:, :, :3]), "without the clip's latents, as long as nothing is encoded again"
    assert later.info.first_pixel_frame(15) == 9


def test_the_first_block_after_a_memory_may_recache(host):
    memory, _, latents = clip(host, "window:9")
    engine = LiveEngine(host, LiveSettings(RED, seed=5, **FREE), False, LiveStart(memory=memory, history=latents))
    made, _ = run(engine, 2, {0: [Prompt.of(BLUE, "recache")]})
    prompts = result_of(engine, None).prompts
    assert [(c.frame, c.switch) for c in prompts.changes][:2] == [(0, "keep"), (12, "recache")]
    again = offline(host, prompts, memory.fork(), 6, history_latents=latents)
    assert torch.equal(torch.cat(made, dim=2), again)


def test_guidance_goes_on_from_the_memory_of_a_guided_clip(host):
    memory, negative, latents = clip(host, "window:9", guidance=2.0)
    settings = LiveSettings(RED, BLUE, seed=5, guidance=2.0, **FREE)
    engine = LiveEngine(host, settings, False, LiveStart(memory=memory, negative=negative))
    made, _ = run(engine, 3)
    with torch.no_grad():
        blocks = rollout(
            host.model, host.encode(RED), memory.fork(), host.noise(5), 9, RolloutSettings(Schedule.of(2), guidance=2),
            negative=host.encode(BLUE), negative_memory=negative.fork(),
        )  # fmt: skip
        again = [block.latents for block in blocks]
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    with pytest.raises(InputError, match="guidance=2.0 needs the memory of a guided clip"):
        LiveEngine(host, settings, False, LiveStart(memory=memory))
    short = negative.fork()
    short.trim(9)
    with pytest.raises(InputError, match="negative_memory holds 9 latent frames, and `memory` 12"):
        LiveEngine(host, settings, False, LiveStart(memory=memory, negative=short))


@pytest.mark.parametrize("frames", [1, 4])
def test_a_session_that_begins_with_a_picture_or_video_is_the_rollout_from_it(host, frames):
    latents = clip(host, "full")[2][:, :, :frames]
    engine = LiveEngine(host, LiveSettings(RED, seed=5, policy="sink:3,window:9", **FREE), start=LiveStart(latents))
    lead = 2 if frames == 4 else 1
    made, pixels = run(engine, lead + 3, {lead + 1: [Prompt.of(BLUE, "recache")]})
    result = result_of(engine, None)
    assert result.start == 0 and torch.equal(result.latents[:, :, :frames], latents)
    assert sum(p.shape[0] for p in pixels) == 4 * (frames + 9) - 3
    memory = host.new_memory(result.memory.policy)
    again = offline(host, result.prompts, memory, 9, initial_latents=latents)
    assert torch.equal(result.latents[:, :, frames:], again)
    back, _ = run(engine, lead + 1, {0: [Fork(0.0)]})
    assert torch.equal(torch.cat(back, dim=2), result.latents[:, :, : frames + 3]), "rewound to before the picture"


@pytest.mark.parametrize("kind", ["memory", "latents"])
def test_a_replay_needs_what_the_session_began_with(host, kind):
    memory, _, latents = clip(host, "window:9")
    other = LiveStart(latents + 1e-3)
    start = LiveStart(memory=memory, history=latents) if kind == "memory" else LiveStart(latents[:, :, :4])
    engine = LiveEngine(host, LiveSettings(RED, seed=5, **FREE), False, start)
    made, _ = run(engine, 6, {2: [Prompt.of(BLUE, "recache")], 4: [Rewind(0.9)]})
    text = replay_of(engine).to_json()
    assert json.loads(text)["start"] == {"kind": kind, "digest": start.digest} and len(start.digest) == 32
    replay = parse_replay(json.loads(text))
    same = LiveStart(start.latents, None if start.memory is None else memory.fork(), None, start.history)
    again = [block.latents for block in play(replay_engine(host, replay, start=same), replay)]
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    for wrong, found in ((None, "nothing was given"), (other, f"found content {other.digest}")):
        with pytest.raises(InputError) as error:
            replay_engine(host, replay, start=wrong)
        assert found in str(error.value) and f"content {start.digest}" in str(error.value)
        assert error.value.field == ("memory" if kind == "memory" else "image") and len(str(error.value)) < 400
    with pytest.raises(InputError, match="has no effect: the session began without"):
        check_start(None, start)


def test_what_does_not_fit_or_is_not_there_is_refused(host):
    memory, _, latents = clip(host, "window:9")
    settings = LiveSettings(RED, seed=5, **FREE)
    with pytest.raises(InputError, match="policy full does not fit the memory, whose own is window:9"):
        LiveEngine(host, LiveSettings(RED, policy="full", **FREE), False, LiveStart(memory=memory))
    small = PipelineHost(host.pipe, 48, 32)
    with pytest.raises(InputError, match="memory was written for another model or size"):
        LiveEngine(small, settings, False, LiveStart(memory=memory))
    with pytest.raises(InputError, match=r"latents: found shape \[1, 16, 12, 4, 4\], expected \[1, 16, F, 4, 6\]"):
        LiveEngine(small, settings, False, LiveStart(latents))
    for wrong in ({}, {"latents": latents, "memory": memory}, {"latents": latents, "history": latents}):
        with pytest.raises(InputError):
            LiveStart(**wrong)
    engine = LiveEngine(host, settings, False, LiveStart(memory=memory))
    for control in (Prompt.of(BLUE, "recache"), Policy("window:6"), Guidance(2.0)):
        with pytest.raises(InputError, match="needs the latents before it, which are not kept or were not given"):
            engine.apply(control)
    run(engine, 3, {2: [Prompt.of(BLUE)]})
    engine.apply(Prompt.of(RED, "recache"))  # the window has been filled by the session's own blocks
    run(engine, 1)


def test_without_budget_the_beginning_is_kept_as_long_as_the_blocks_after_it(host):
    memory, _, latents = clip(host, "window:9")
    settings = LiveSettings(RED, seed=5, rewind_budget=0, **FREE)
    engine = LiveEngine(host, settings, False, LiveStart(memory=memory, history=latents))
    first, _ = run(engine, 6)
    again, _ = run(engine, 1, {0: [Rewind(0.0)]})
    assert torch.equal(again[0], first[0])
    run(engine, 30)
    with pytest.raises(InputError, match="seconds: found"):
        engine.apply(Rewind(0.0))


def test_the_recording_of_a_session_from_a_memory_has_its_own_frames(host, tmp_path):
    memory, _, latents = clip(host, "window:9")
    start = LiveStart(memory=memory, history=latents)
    settings = LiveSettings(RED, nfe=2, pace="free", frames=18)
    session = LiveSession(host, settings, record=tmp_path / "clip.mp4", start=start)
    session.run()
    branch = session.recorded_branch()
    assert len(branch.ends) == 24 and session.state().seconds == 1.5 and session.state().block == 2
    with pytest.raises(InputError, match="no blocks on this branch"):
        result_of(LiveEngine(host, settings, False, start), None)


def test_the_command_line_takes_a_saved_memory_and_a_picture(host, tmp_path, monkeypatch, capsys):
    from PIL import Image

    from salt.cli import main
    from salt.cli.live_start import host_and_start
    from salt.memory.serialization import save_clip
    from salt.pipeline import from_options

    monkeypatch.setattr(from_options, "load_pipeline", lambda options, device: host.pipe)
    memory, _, latents = clip(host, "window:9")
    saved, picture, replay = tmp_path / "clip.safetensors", tmp_path / "start.png", tmp_path / "session.json"
    save_clip(saved, memory, None, latents)
    Image.new("RGB", (40, 30), "red").save(picture)
    for options, other in ((["--extend", saved], ["--image", picture]), (["--image", picture], ["--extend", saved])):
        paths = {name.removeprefix("--"): path for name, path in [options]}
        own, start = host_and_start(host.pipe, None, paths.get("extend"), paths.get("image"), None)
        engine = LiveEngine(own, LiveSettings(RED, seed=5, **FREE), False, start)
        run(engine, 2)
        replay_of(engine).save(replay)
        assert str(tmp_path) not in replay.read_text()
        assert main(["replay", str(replay), *map(str, options)]) == 0
        assert "2 blocks made" in capsys.readouterr().out
        for wrong in ([], other):
            assert main(["replay", str(replay), *map(str, wrong)]) == 2
            error = capsys.readouterr().err
            assert f"{options[0]} is needed: the session" in error and str(tmp_path) not in error


def test_pictures_of_a_camera_come_after_what_the_session_begins_with(host):
    """`salt live` always has a camera, which nobody may use."""
    from salt.live.video_feed import CameraPictures

    latents = clip(host, "full")[2][:, :, :4]
    settings = LiveSettings(RED, seed=5, policy="window:9", **FREE)
    plain, _ = run(LiveEngine(host, settings, False, LiveStart(latents)), 3)
    feed = host.new_feed(CameraPictures())
    made, _ = run(LiveEngine(host, settings, False, LiveStart(latents), feed), 3)
    assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True)) and not feed.used
