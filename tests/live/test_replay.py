"""Replays: the same latents to the bit, as the session, its replay file and an offline rollout make them."""

import json
import random

import pytest
import torch

from salt.cli import generation, main  # noqa: F401 - which imports load_pipeline before a test replaces it
from salt.live.controls import Blend, Bookmark, Fork, Goto, Guidance, Nfe, Policy, Prompt, Rewind, Seed, WeightedPrompt
from salt.live.engine import LiveEngine
from salt.live.pipeline_host import PipelineHost
from salt.live.replay import ReplayFileError, parse_replay, play, read_replay, replay_engine, replay_of
from salt.live.result import result_of
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from salt.rollout import RolloutSettings, rollout, rollout_from
from salt.schedule import Schedule
from tests.helpers import tiny_system

POLICIES = ("window:9", "sink:3,window:9", "relative:3,window:12", "blended:3,window:9")
SLOW = pytest.mark.slow
SHAPES = ("a red circle moving right", "a blue square moving up", "a green triangle moving left")


@pytest.fixture(scope="module")
def host():
    return PipelineHost(tiny_system.pipeline())


def random_control(rng, engine):
    end = engine.info.first_pixel_frame(engine.branch.end) / 16
    kind = rng.choice(("prompt", "prompt", "prompt", "seed", "nfe", "guidance", "policy", "bookmark", "move", "move"))
    if kind == "prompt":
        texts = rng.sample(SHAPES, rng.choice((1, 1, 2)))
        switch = rng.choice(("keep", "recache", "recache", "cut"))
        blend = Blend(rng.choice((0, 0, 2)), rng.choice(("linear", "slerp")))
        prompts = tuple(WeightedPrompt(t, rng.choice((1.0, 2.5))) for t in texts)
        return Prompt(prompts, switch, switch == "recache" and rng.random() < 0.5, blend)
    if kind == "move":
        moves = [Rewind(rng.uniform(0, end)), Fork(rng.uniform(0, end)), Goto(branch=rng.choice([*engine.branches]))]
        moves += [Goto(bookmark=rng.choice([*engine.bookmarks]))] if engine.bookmarks else []
        return rng.choice(moves)
    return {
        "seed": lambda: Seed(rng.randrange(1000)),
        "nfe": lambda: Nfe(rng.choice((2, 2, 4))),
        "guidance": lambda: Guidance(rng.choice((1.0, 1.0, 2.0))),
        "policy": lambda: Policy(rng.choice(POLICIES)),
        "bookmark": lambda: Bookmark("here"),
    }[kind]()


def random_session(host, controls, seed):
    """A session of so many random controls, one before about every block, and the latents of all its blocks."""
    rng = random.Random(seed)
    engine = LiveEngine(host, LiveSettings(SHAPES[0], nfe=2, pace="free", policy="window:9"), decodes=False)
    sent = 0

    def gate():
        nonlocal sent
        while engine.made and sent < controls and rng.random() < 0.6:
            sent += 1
            try:
                engine.apply(random_control(rng, engine))
            except ValueError as error:
                assert "64 branches" in str(error) or "within one another" in str(error), error
        return sent < controls or not engine.in_place or engine.branch.tip is None

    return engine, [block.latents for block in engine.blocks(gate)]


def offline(host, result):
    """The branch's blocks by an offline rollout, from what `changes` says and nothing that the session has kept."""
    made: list[torch.Tensor] = []
    plans = LiveEngine(host, LiveSettings(SHAPES[0]), decodes=False)
    at = {c.start: c.choice for c in result.changes}
    memory = host.new_memory(result.changes[0].choice.policy)
    last = before = None

    def source(start):
        nonlocal last, before
        last = at.get(start, last)
        switched = start in at
        if start == result.latents.shape[2]:
            return None
        plan = plans.planner.plan(last, None)  # conditioning, settings, noise
        first = plan.prompts[0]
        switch = last.switch if switched and start else "keep"
        scene = max((c.start for c in result.changes if c.choice.switch == "cut" and c.start <= start), default=0)
        recent = [x for i, x in enumerate(made) if 3 * i >= scene]
        renewed = before is not None and (before.policy != last.policy or (before.guidance == 1 != last.guidance))
        history = recent if before is not None and (switch == "recache" or renewed) and switch != "cut" else None
        before = last
        prompts = [type(first)(start, first.conditioning, switch, last.keep_sink), *plan.prompts[1:]]
        return type(plan)(prompts, plan.settings, plan.noise, last.policy, history)

    for block in rollout_from(host.model, source, memory, memory.empty_like()):
        made.append(block.latents)
    return torch.cat(made, dim=2)


@pytest.mark.parametrize(
    ("controls", "seed"),
    [(30, 3), pytest.param(200, 4, marks=SLOW), pytest.param(200, 5, marks=SLOW)],
)
@torch.no_grad()
def test_a_session_its_replay_and_the_offline_rollout_are_equal_to_the_bit(host, tmp_path, controls, seed):
    engine, latents = random_session(host, controls, seed)
    kinds = {control.kind for _, control in engine.log}
    assert kinds >= {"prompt", "seed", "rewind", "fork"} and len(engine.log) > 0.8 * controls
    replay_of(engine).save(tmp_path / "session.json")
    replay = read_replay(tmp_path / "session.json")
    again = replay_engine(host, replay)
    played = [block.latents for block in play(again, replay)]
    assert len(played) == len(latents) == replay.blocks
    assert all(torch.equal(a, b) for a, b in zip(played, latents, strict=True))
    result = result_of(engine, None)
    assert torch.equal(result.latents, result_of(again, None).latents)
    assert torch.equal(offline(host, result), result.latents)


def test_the_prompts_as_applied_are_a_schedule_that_an_offline_rollout_plays(host):
    session = LiveSession(host, LiveSettings(SHAPES[0], nfe=2, pace="free", frames=18, policy="sink:3,window:9"))
    sending = {2: Prompt.of(SHAPES[1], "recache"), 4: Prompt.of(SHAPES[2], blocks=1)}
    gate = session._gate
    session._gate = lambda: (
        [session.send(sending.pop(n)) for n in [session.engine.branch.blocks] if n in sending], gate()
    )[1]  # fmt: skip
    session.run()
    result = session.result()
    assert [(c.frame, c.switch) for c in result.prompts.changes][:2] == [(0, "keep"), (6, "recache")]
    assert result.also_changed == () and result.start == 0
    memory = host.new_memory(result.memory.policy)
    with torch.no_grad():
        made = rollout(host.model, result.prompts, memory, host.noise(0), 18, RolloutSettings(Schedule.of(2)))
        assert torch.equal(torch.cat([b.latents for b in made], dim=2), result.latents)
    assert memory.next_frame == result.memory.next_frame == 18 and memory.held == result.memory.held
    assert replay_of(session.engine).blocks == session.replay().blocks == 6


VALID = {
    "format": "salt-replay-1", "fingerprint": "0", "width": 32, "height": 32, "blocks": 2,
    "settings": {"prompt": "a red circle"}, "controls": [{"after": 1, "control": "seed", "seed": 3}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format: found 'other', expected 'salt-replay-1'"),
        ({"blocks": -1}, "blocks: found -1, expected 0 to 1e+07"),
        ({"blocks": True}, "blocks: found True, expected an integer"),
        ({"width": 10**9}, "width: found 1000000000"),
        ({"settings": {"prompt": 3}}, "settings.prompt: found 3, expected text"),
        ({"settings": {"prompt": "a", "rewind_budget": 10**30}}, "rewind_budget: found"),
        ({"settings": {"prompt": "a", "nfe": 5}}, "nfe: found 5"),
        ({"controls": {}}, "controls: found {}, expected a list"),
        ({"controls": [{"after": 9, "control": "seed", "seed": 1}]}, "controls[0].after: found 9, expected 0 to 2"),
        ({"controls": [{"after": 1, "control": "stop"}]}, "controls[0].control: found 'stop', expected one of prompt"),
        ({"controls": [{"after": 1, "control": "seed", "seed": "x"}]}, "controls[0].seed: found 'x'"),
        ({"controls": [3]}, "controls[0].after: found None"),
        ({"controls": [{"after": 1, "control": "seed", "seed": 1, "at": 2}]}, "controls[0].seed: found 'at', expected"),
        ({"settings": {"prompt": "a", "steps": 2}}, "settings: found 'steps', expected only frames, guidance"),
        ({"record": "clip.mp4"}, "the content: found 'record', expected only blocks, fingerprint"),
    ],
)
def test_a_replay_file_that_is_wrong_is_refused_by_file_and_field(tmp_path, change, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**VALID, **change}))
    with pytest.raises(ReplayFileError) as error:
        read_replay(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and len(str(error.value)) < 400


def test_a_replay_of_another_model_or_size_is_refused(host):
    replay = parse_replay(VALID)
    with pytest.raises(ValueError, match="model is another one than the replay was made with: found fingerprint"):
        replay_engine(host, replay)


def test_salt_replay_writes_the_video_of_the_last_branch(host, tmp_path, monkeypatch, capsys):
    from salt.pipeline import from_options

    monkeypatch.setattr(from_options, "load_pipeline", lambda options, device: host.pipe)
    path, out = tmp_path / "session.json", tmp_path / "clip.mp4"
    session = LiveSession(host, LiveSettings(SHAPES[0], nfe=2, pace="free", frames=6), record=tmp_path / "live.mp4")
    session.run()
    session.replay().save(path)
    assert main(["replay", str(path), "-o", str(out)]) == 0
    assert out.read_bytes() == (tmp_path / "live.mp4").read_bytes()
    assert "2 blocks made, 2 of them on branch 1 (1.31 s), latents " in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "live.mp4", "session.json"]
    path.write_text(json.dumps({**VALID, "format": 1}))
    assert main(["replay", str(path)]) == 2
    assert f"error: {path}: format: found 1" in capsys.readouterr().err
