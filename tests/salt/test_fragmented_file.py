"""A video file that is there, and can be played, while it is written."""

import logging
import os
import signal
import subprocess
import sys
import time

import imageio_ffmpeg
import numpy as np
import pytest

from salt.io import fragmented_file
from salt.io.fragmented_file import FragmentedFile
from salt.io.fragmented_mp4 import FragmentedEncoder
from salt.io.video import VideoWriteError


def pictures(count):
    return np.full((count, 32, 48, 3), 100, np.uint8)


def frames_in(path):
    return imageio_ffmpeg.count_frames_and_secs(path)[0]


def test_it_has_an_index_when_it_is_closed_and_replaces_nothing(tmp_path):
    path = tmp_path / "clip.mp4"
    with FragmentedFile(path, 12) as file:
        file.write(pictures(9))
        file.write(pictures(12))
    assert file.frames == frames_in(path) == 21 and b"moof" not in path.read_bytes()
    with pytest.raises(FileExistsError, match="nothing was replaced"):
        FragmentedFile(path, 12)
    assert frames_in(path) == 21 and os.listdir(tmp_path) == ["clip.mp4"]


def test_an_exception_keeps_the_frames_and_an_empty_file_is_removed(tmp_path, caplog):
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt), FragmentedFile(path, 12) as file:
        file.write(pictures(9))
        raise KeyboardInterrupt
    assert frames_in(path) == 9
    with pytest.raises(KeyError), FragmentedFile(tmp_path / "none.mp4", 12):
        raise KeyError
    assert os.listdir(tmp_path) == ["clip.mp4"]


class Full(FragmentedFile):
    def _append(self, fragment):
        if fragment.frame == 10:
            raise OSError(28, "No space left on device")
        super()._append(fragment)


def test_a_full_disk_is_said_with_the_file_and_what_is_kept(tmp_path, caplog):
    path = tmp_path / "clip.mp4"
    with pytest.raises(VideoWriteError) as failed, Full(path, 12) as file:
        file.write(pictures(9))
        file.write(pictures(12))
    said = str(failed.value)
    assert said.startswith(f"{path}: ") and "No space left" in said and said.endswith("10 are kept and can be played")
    assert frames_in(path) == 10
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError), Full(tmp_path / "other.mp4", 12) as file:
        file.write(pictures(21))
        raise KeyError
    assert "No space left" in caplog.text, "which does not hide the error that came first"


WRITE = """
import sys, time
import numpy as np
from salt.io.fragmented_file import FragmentedFile
file = FragmentedFile(__import__("pathlib").Path(sys.argv[1]), 12)
file.write(np.zeros((9, 32, 48, 3), np.uint8))
file.write(np.zeros((12, 32, 48, 3), np.uint8))
while file.frames < 21:
    time.sleep(0.01)
print("written", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_file_that_plays(tmp_path):
    path = tmp_path / "clip.mp4"
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert frames_in(path) == 21


def test_the_encoder_s_first_fragment_comes_with_the_beginning(tmp_path, monkeypatch):
    """While it is written, the file on disk is whole up to its last frame."""
    path, seen = tmp_path / "clip.mp4", []

    class Watching(FragmentedEncoder):
        def write(self, frames):
            super().write(frames)
            until = time.monotonic() + 20
            while file.frames < self.frames and time.monotonic() < until:
                time.sleep(0.001)
            seen.append(frames_in(path))

    monkeypatch.setattr(fragmented_file, "FragmentedEncoder", Watching)
    with FragmentedFile(path, 12) as file:
        file.write(pictures(9))
        file.write(pictures(12))
    assert seen == [9, 21]
