"""Videos as frames at 16 a second, by time; and lengths that are looked at before anything is read."""

import numpy as np
import pytest

from salt.errors import InputError
from salt.io import video_frames
from salt.io.video import VideoWriter, read_video
from salt.live.video_feed import FilePictures
from salt.pipeline import start_image
from salt.pipeline.source_video import open_video
from salt.pipeline.start_image import start_pixels


def film(path, fps, seconds=2):
    """A white edge that crosses the frame once in `seconds`."""
    frames = np.zeros((fps * seconds + 1, 48, 96, 3), np.uint8)
    for i in range(len(frames)):
        frames[i, :, : round(96 * i / len(frames))] = 255
    with VideoWriter(path, fps=fps) as video:
        video.write(frames)
    return path


@pytest.mark.parametrize("fps", [8, 16, 24, 30, 32, 60])
def test_a_motion_keeps_its_speed_at_any_rate(tmp_path, fps, caplog):
    pixels = read_video(film(tmp_path / "film.mp4", fps))
    white = (pixels[0, 0] > 0).float().mean((1, 2))
    assert abs(len(white) - 33) <= 1
    expected = np.arange(len(white)) / 33
    assert np.abs(white.numpy() - expected).max() < 0.08  # a frame of 8 a second is a sixteenth of the way
    assert ("found 8 frames a second; frames are repeated to make 16" in caplog.text) == (fps == 8)


def test_the_rate_is_the_models(tmp_path):
    path = film(tmp_path / "film.mp4", 16)
    pixels, info = read_video(path, fps=24), video_frames.video_info(path, 24)
    white = (pixels[0, 0] > 0).float().mean((1, 2))
    assert abs(len(white) - 50) <= 1 and abs(info.frames - 49) <= 1 and info.own_frames == 33
    assert np.abs(white.numpy() - np.arange(len(white)) / 49).max() < 0.08
    with pytest.raises(ValueError, match="has 50 frames at 24 a second, expected at least 60"):
        read_video(path, frames=60, fps=24)
    source = open_video(path, 24)
    assert source.frames == info.frames and source.seconds == info.frames / 24
    pictures = FilePictures(path, 24).take(12, 90).frames
    assert pictures[info.own_frames].mean() > 128 and pictures[60].mean() < 60, "begun again"


def test_a_part_is_read_from_its_time_on(tmp_path):
    path = film(tmp_path / "film.MOV.mp4", 32)
    whole, part = read_video(path), read_video(path, frames=5, start=1.0)
    assert part.shape[2] == 5
    assert (part - whole[:, :, 16:21]).abs().mean() < 0.03
    with pytest.raises(ValueError, match="film.MOV.mp4: has 1 frames at 16 a second from 2 s on, expected at least 5"):
        read_video(path, frames=5, start=2.0)


def test_a_long_video_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = film(tmp_path / "long.mp4", 16, seconds=10)
    monkeypatch.setattr(video_frames, "_frames", lambda *_: (pytest.fail("a frame was read") for _ in (0,)))
    with pytest.raises(ValueError, match=r"long.mp4: found 10.06 s of video \(161 frames at 16 a second\), expected"):
        read_video(path, longest=81)
    monkeypatch.setattr("salt.io.video.MAX_VIDEO_BYTES", 12 * 48 * 96 * 100)
    with pytest.raises(ValueError, match=r"expected at most 6.25 s \(100 frames\)"):
        read_video(path)
    with pytest.raises(InputError, match="image: found a start of 10.06 s in .*long.mp4, expected less than the clip"):
        start_pixels(path, (48, 96), 1, longest=81)


def test_a_length_that_the_file_hides_is_noticed_while_reading(tmp_path, monkeypatch):
    path = film(tmp_path / "long.mp4", 16, seconds=10)
    monkeypatch.setattr(video_frames.VideoInfo, "frames", property(lambda self: 0))
    with pytest.raises(ValueError, match="long.mp4: found 5.125 s of video"):
        read_video(path, longest=81)


def test_upper_case_suffixes_are_videos_too(tmp_path):
    path = film(tmp_path / "film.mp4", 16).rename(tmp_path / "FILM.MP4")
    assert start_pixels(path, (48, 96), 1).shape == (1, 3, 33, 48, 96)
    assert ".mov" in start_image.VIDEO_SUFFIXES
