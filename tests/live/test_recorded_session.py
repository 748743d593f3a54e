"""A recorded session of random controls: its replay, its files and the offline rollout are equal to the bit."""

import random

import imageio_ffmpeg
import pytest
import torch

from salt.live.pipeline_host import PipelineHost
from salt.live.replay import play, read_replay, replay_engine
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from tests.helpers import tiny_system
from tests.live.test_replay import SHAPES, offline, random_control


@pytest.mark.parametrize(("controls", "seed"), [(8, 3), pytest.param(200, 7, marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_recorded_session_equals_its_replay_and_the_offline_rollout(tmp_path, controls, seed):
    host, path = PipelineHost(tiny_system.pipeline()), tmp_path / "clip.mp4"
    session = LiveSession(host, LiveSettings(SHAPES[0], nfe=2, pace="free", policy="window:9"), record=path)
    rng, sent, latents = random.Random(seed), [], []
    gate, publish = session._gate, session._publish

    def steered():
        if session.engine.made and len(sent) < controls and rng.random() < 0.6:
            sent.append(session.send(random_control(rng, session.engine)))
        if len(sent) == controls and session.engine.in_place and session.engine.branch.tip is not None:
            session.stop()
        return gate()

    def kept(block):
        latents.append(block.latents)
        publish(block)

    session._gate, session._publish = steered, kept
    session.run()
    state = session.state()
    assert state.status == "stopped", state.message
    kinds = [control.kind for _, control in session.engine.log]
    assert {"prompt", "rewind"} <= {*kinds} and len(kinds) > 0.8 * controls
    session.replay().save(tmp_path / "clip.replay.json")
    replay = read_replay(tmp_path / "clip.replay.json")
    again = replay_engine(host, replay)
    played = [block.latents for block in play(again, replay)]
    assert len(played) == len(latents) == replay.blocks
    assert all(torch.equal(a, b) for a, b in zip(played, latents, strict=True))
    result = session.result()
    assert torch.equal(offline(host, result), result.latents)
    names = {b.id: path if b.id == 1 else tmp_path / f"clip.branch{b.id}.mp4" for b in state.branches}
    ends = {b.id: b.frames for b in state.branches if b.frames}
    assert {id: imageio_ffmpeg.count_frames_and_secs(names[id])[0] for id in ends} == ends
