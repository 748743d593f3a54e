"""Recordings: fragments that continue one another, cut back and copied with their branches."""

import struct
import time

import imageio_ffmpeg
import numpy as np
import pytest

from salt.io.fragmented_mp4 import FragmentedEncoder
from salt.live.controls import Fork, Goto, Rewind
from salt.live.pipeline_host import PipelineHost
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from tests.helpers import tiny_system


def pictures(count, shade=0):
    return np.full((count, 34, 33, 3), shade, np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]


def box_kinds(data):
    kinds, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        kinds, at = [*kinds, kind], at + size
    return kinds


def frames_in(path):
    return imageio_ffmpeg.count_frames_and_secs(path)[0]


def test_fragments_of_two_encoders_are_one_video(tmp_path):
    fragments = []
    first = FragmentedEncoder(33, 34, 12, fragments.append)
    first.write(pictures(9)), first.write(pictures(12, 100)), first.close()
    second = FragmentedEncoder(33, 34, 12, fragments.append, first_frame=21)
    second.write(pictures(12, 200)), second.close()
    assert first.init == second.init
    assert [f.frame for f in fragments] == list(range(33))
    assert [f.frame for f in fragments if f.key] == [0, 9, 21]
    path = tmp_path / "both.mp4"
    path.write_bytes(first.init + b"".join(f.data for f in fragments))
    reader = imageio_ffmpeg.read_frames(path)
    meta = next(reader)
    assert meta["size"] == (34, 34) and meta["fps"] == 16
    shades = [np.frombuffer(frame, np.uint8).mean() for frame in reader]
    assert len(shades) == 33 and abs(shades[9] - 100) < 4 and abs(shades[32] - 211) < 4
    assert box_kinds(path.read_bytes()) == [b"ftyp", b"moov"] + [b"moof", b"mdat"] * 33


def test_every_frame_that_was_pushed_is_there_before_the_next_one_comes(tmp_path):
    """The last one too: whoever watches, and a process that is killed, lack nothing."""
    fragments, path = [], tmp_path / "clip.mp4"
    encoder = FragmentedEncoder(33, 34, 12, fragments.append)
    for pushed in (9, 10, 22):
        encoder.write(pictures(pushed - encoder.frames))
        until = time.monotonic() + 20
        while len(fragments) < pushed and time.monotonic() < until:
            time.sleep(0.001)
        path.write_bytes(encoder.init + b"".join(f.data for f in fragments))
        assert frames_in(path) == pushed == len(fragments)
    encoder.close()
    assert len(fragments) == 22


def test_wrong_frames_and_a_failing_sink_are_errors():
    encoder = FragmentedEncoder(33, 34, 12, lambda fragment: None)
    with pytest.raises(ValueError, match="expected uint8 frames"):
        encoder.write(pictures(3)[:, :10])

    def full(fragment):
        raise OSError("No space left on device")

    encoder = FragmentedEncoder(33, 34, 12, full)
    with pytest.raises(OSError, match="No space left on device"):
        encoder.write(pictures(12)), encoder.close()


def test_a_recording_is_cut_back_and_a_fork_begins_with_a_copy(tmp_path):
    path, other = tmp_path / "clip.mp4", tmp_path / "clip.branch2.mp4"
    other.write_bytes(b"of another session")
    host = PipelineHost(tiny_system.pipeline())
    session = LiveSession(host, LiveSettings("a red circle", nfe=2, pace="free", frames=12), record=path)
    controls = {(1, 4): Rewind(21 / 16), (1, 3): Fork(9 / 16), (2, 3): Goto(branch=1), (2, 4): None}
    gate = session._gate

    def gated():
        branch = session.engine.branch
        control = controls.pop((branch.id, branch.blocks), None)
        if control is not None:
            session.send(control)
        return gate()

    session._gate = gated
    session.run()
    assert session.state().status == "stopped", session.state().message
    assert other.read_bytes() == b"of another session"
    sizes = {p.name: frames_in(p) for p in tmp_path.iterdir() if p != other}
    ends = {f"clip{'' if b.id == 1 else '.branch2-2'}.mp4": b.frames for b in session.state().branches}
    assert sizes == ends and session.recording_path() == path
    with pytest.raises(FileExistsError, match="nothing was replaced"):
        LiveSession(host, LiveSettings("a red circle"), record=path)
