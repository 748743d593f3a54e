"""Whatever happens to a session: errors end it in one line, kills leave a playable file, and nothing is left behind."""

import mmap
import os
import random
import signal
import struct
import threading
import time
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
import torch

from salt.live.controls import Fork, Pace, Pause, Prompt, Resume, Rewind, Step
from salt.live.pipeline_host import PipelineHost
from salt.live.recording import Recording
from salt.live.replay import play, replay_engine
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from tests.helpers import tiny_system
from tests.live.test_replay import SHAPES, random_control


@pytest.fixture(scope="module")
def host():
    return PipelineHost(tiny_system.pipeline())


def frames_in(path):
    return imageio_ffmpeg.count_frames_and_secs(path)[0]


def session_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("salt-")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "block 3 (latent frames 6 to 8): the student's output is not finite (NaN or infinity), so the clip"),
        ("memory", "CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_an_error_ends_the_session_in_one_line_and_the_recording_is_kept(host, tmp_path, monkeypatch, fault, message):
    model, calls = host.model, []

    def failing(inputs):
        calls.append(1)
        if len(calls) > 6 and fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
        return model(inputs) * (float("nan") if len(calls) > 6 else 1)

    monkeypatch.setattr(host, "model", failing)
    session = LiveSession(host, LiveSettings(SHAPES[0], nfe=2, pace="free"), record=tmp_path / "clip.mp4")
    session.start()
    assert session.join(30)
    state = session.state()
    assert state.status == "failed" and state.message.startswith(message) and "\n" not in state.message
    assert frames_in(tmp_path / "clip.mp4") == 21
    assert session_threads() == []


def test_a_host_s_interruption_passes_through_and_the_session_has_ended(host):
    class Interrupted(Exception):
        pass

    session = LiveSession(host, LiveSettings(SHAPES[0], nfe=2, pace="free"))

    def interrupt(*_):
        raise Interrupted

    session.engine.take_snapshot = interrupt
    with pytest.raises(Interrupted):
        session.run()
    assert session.ended and session.state().message == "the session was interrupted" and session_threads() == []


def killed(write, seconds):
    """Run `write(ready)` in a forked process, and kill it `seconds` after it has called `ready`."""
    read_end, write_end = os.pipe()
    process = os.fork()
    if not process:
        try:
            write(lambda: os.write(write_end, b"1"))
        finally:
            os._exit(1)
    os.close(write_end)
    assert os.read(read_end, 1) == b"1"
    os.close(read_end)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("moment", [0.05, 0.3])
def test_a_recording_is_playable_after_kill_9(host, tmp_path, moment):
    path = tmp_path / "clip.mp4"

    def write(ready):
        recording, frames = Recording(path, host.info), np.zeros((12, 64, 64, 3), np.uint8)
        for block in range(10**6):
            recording.write(frames + block % 200)
            if len(recording._branch.ends) > 12:
                ready()

    killed(write, moment)
    assert frames_in(path) >= 13


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("moves", [False, True])
def test_sessions_killed_at_50_moments_leave_recordings_that_play_up_to_there(host, tmp_path, moves):
    """Every frame that was in the file when the process was killed is played. moves: with rewinds and forks."""
    rng, counts, lost = random.Random(1), [], []
    for number in range(25):
        path = tmp_path / str(number) / "clip.mp4"
        path.parent.mkdir()
        written = mmap.mmap(-1, 8)

        def write(ready, path=path, written=written, number=number):
            torch.set_num_threads(1)
            session = LiveSession(host, LiveSettings(SHAPES[0], nfe=2, pace="free"), record=path)
            recording, chance = session.output.recording, random.Random(number)
            append, publish = recording._append, session._publish

            def counted(fragment):
                append(fragment)
                written[:] = struct.pack("q", len(recording.branch.ends))

            def moved(block):
                publish(block)
                if block.kept.number == 1:
                    ready()
                if moves and chance.random() < 0.3:
                    session.send(chance.choice((Rewind, Fork))(chance.uniform(0, 1)))

            recording._append, session._publish = counted, moved
            session.run()

        killed(write, rng.uniform(0, 1.0))
        files = [file for file in path.parent.iterdir() if file.stat().st_size]
        played = {file.name: frames_in(file) for file in files}
        assert all(played.values()), (number, played)
        if not moves:
            (known,) = struct.unpack("q", written[:])
            counts.append(played.get("clip.mp4", 0))
            lost.append(known - counts[-1])
    assert moves or max(lost) <= 0 < max(counts), (counts, lost)


@pytest.mark.slow
def test_1000_random_controls_and_lagging_viewers_neither_deadlock_nor_leave_threads(host):
    """Four threads send, two viewers come and go, one of them never reads; the replay is still exact."""
    before = session_threads()
    session = LiveSession(host, LiveSettings(SHAPES[0], nfe=2, pace="free", policy="window:9"))
    lock, sent = threading.Lock(), []
    session.start()

    def send(seed):
        rng = random.Random(seed)
        while len(sent) < 1000:
            special = [Pause(), Resume(), Resume(), Step(), Pace("realtime"), Pace("free")]
            try:
                control = rng.choice(special) if rng.random() < 0.3 else random_control(rng, session.engine)
                session.send(control)
            except (ValueError, RuntimeError) as error:  # what the other threads have done meanwhile
                assert not session.ended, (error, session.state())
            with lock:
                sent.append(1)
            time.sleep(rng.uniform(0, 0.02))

    def watch(seed):
        rng = random.Random(seed)
        while not session.ended:
            viewer = session.subscribe(batches=rng.choice((1, 4)))
            for _ in range(rng.randrange(20)):
                message = viewer.get(0.05) if seed else None
                if hasattr(message, "play_index"):
                    viewer.played(message.play_index)
            session.unsubscribe(viewer)

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
    threads += [threading.Thread(target=watch, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads[:4]:
        thread.join(120)
    session.send(Resume()), session.send(Pace("free")), session.send(Prompt.of(SHAPES[0]))
    time.sleep(0.3)
    session.close()
    for thread in threads[4:]:
        thread.join(10)
    state = session.state()
    assert state.status == "stopped", state.message
    assert session_threads() == before and len(session.viewers) == 0
    replay = replace(session.replay())
    again = replay_engine(host, replay)
    for _ in play(again, replay):
        pass
    tip, its = session.engine.branch.tip, again.branch.tip
    assert tip is its is None or torch.equal(tip.latents, its.latents)  # it may have been rewound to its beginning


@pytest.mark.slow
def test_memory_is_flat_with_a_recording(host, tmp_path):
    """After 80 blocks, a minute of clip, and after 800."""
    settings = LiveSettings(SHAPES[0], nfe=2, pace="free", policy="window:9", rewind_budget=2**22, frames=2400)
    session = LiveSession(host, settings, record=tmp_path / "clip.mp4")
    resident, publish = {}, session._publish

    def measured(block):
        publish(block)
        resident[block.kept.index] = psutil.Process().memory_info().rss

    session._publish = measured
    session.run()
    assert session.state().block == 800
    assert resident[799] < 1.05 * resident[79], {n: resident[n] // 2**20 for n in (10, 79, 200, 400, 600, 799)}
