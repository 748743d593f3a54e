"""Video files written by `VideoWriter`, read back after complete and interrupted runs, and the image readers."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from salt.io.atomic import check_writable
from salt.io.video import VideoWriteError, VideoWriter, fit, read_image, read_video


def clip(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """[3, T, H, W]: grey frames of increasing brightness, so that each frame differs from the next."""
    ramp = torch.linspace(-0.8, 0.8, frames)
    return ramp[None, :, None, None].expand(3, frames, height, width).clone()


def read_back(path: Path) -> np.ndarray:
    """uint8 [T, H, W, 3], by imageio."""
    reader = imageio_ffmpeg.read_frames(path)
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader])


def leftovers(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir() if other != path]


def test_frames_come_back_in_order_and_colour(tmp_path):
    path = tmp_path / "new" / "folder" / "clip.mp4"
    pixels = clip(21)
    pixels[0, :, :16] = 1.0  # the upper half reddish
    with VideoWriter(path, fps=16) as writer:
        for block in pixels.split([9, 12], dim=1):
            writer.write(block)
        assert not path.exists()
    assert writer.frames == 21
    expected = ((pixels + 1) * 127.5).permute(1, 2, 3, 0).numpy()
    found = read_back(path)
    assert found.shape == expected.shape
    inner = np.s_[:, [4, 10, 22, 28], 4:-4]  # away from the edge between the halves, where chroma is shared
    assert np.abs(found[inner].astype(float) - expected[inner]).max() <= 6
    meta = next(imageio_ffmpeg.read_frames(path))
    assert (meta["fps"], meta["codec"]) == (16, "h264")
    assert meta["pix_fmt"].startswith("yuv420p")
    assert leftovers(path) == []


def test_uint8_frames_and_floats_give_the_same_file(tmp_path):
    pixels = clip(5)
    pictures = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    for name, frames in (("a", pixels), ("b", pictures), ("c", pictures.numpy()), ("d", pixels.numpy())):
        with VideoWriter(tmp_path / f"{name}.mp4") as writer:
            writer.write(frames)
    assert len({(tmp_path / f"{name}.mp4").read_bytes() for name in "abcd"}) == 1


@pytest.mark.parametrize(("size", "even"), [((33, 47), (34, 48)), ((32, 47), (32, 48)), ((18, 34), (18, 34))])
def test_odd_sides_are_padded_to_even(tmp_path, size, even):
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        writer.write(torch.ones(3, 3, *size))
    found = read_back(tmp_path / "odd.mp4")
    assert found.shape == (3, *even, 3)
    assert found.min() > 245  # the added edge is a copy, not black


def test_an_exception_leaves_a_playable_file(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path) as writer:
        writer.write(clip(7))
        assert writer._process is not None
        assert writer._process.stdin is not None
        writer._process.stdin.write(b"half a frame")
        raise KeyboardInterrupt
    assert len(read_back(path)) == 7
    assert leftovers(path) == []


def test_a_run_that_fails_before_its_first_frame_keeps_the_old_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older video")
    with pytest.raises(RuntimeError), VideoWriter(path):
        raise RuntimeError
    with pytest.raises(ValueError, match="got torch.float32"), VideoWriter(path) as writer:
        writer.write(torch.zeros(1, 3, 3, 8, 8))
    with pytest.raises(VideoWriteError, match="clip.mp4: no frame was written"), VideoWriter(path):
        pass
    assert path.read_bytes() == b"older video"
    assert leftovers(path) == []


def test_an_incomplete_video_never_replaces_an_older_one(tmp_path, caplog):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older video")
    for name in ("clip.partial.mp4", "clip.partial1.mp4"):
        with pytest.raises(KeyboardInterrupt), VideoWriter(path) as writer:
            writer.write(clip(7))
            raise KeyboardInterrupt
        assert len(read_back(tmp_path / name)) == 7
        assert f"clip.mp4: not replaced; the first 7 frames of the new one are in {tmp_path / name}" in caplog.text
    assert path.read_bytes() == b"older video"
    with VideoWriter(path) as writer:
        writer.write(clip(3))
    assert len(read_back(path)) == 3
    assert sorted(leftovers(path)) == ["clip.partial.mp4", "clip.partial1.mp4"]


def test_ctrl_c_leaves_a_playable_file(tmp_path):
    """A real SIGINT, sent to the whole process group as a terminal does: to Python and to the encoder."""
    program = (
        "import numpy as np, sys\nfrom salt.io.video import VideoWriter\n"
        "with VideoWriter(sys.argv[1]) as writer:\n"
        "    while True:\n"
        "        writer.write(np.full((1, 32, 32, 3), writer.frames % 256, np.uint8))\n"
        "        if writer.frames == 100: print('started', flush=True)\n"
    )
    path = tmp_path / "clip.mp4"
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"started\n"
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert errors.strip().endswith(b"KeyboardInterrupt")
    assert len(read_back(path)) >= 100
    assert leftovers(path) == []


def test_a_killed_encoder_leaves_a_playable_file(tmp_path):
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path)
    frames = torch.rand(3, 200, 64, 64) * 2 - 1
    writer.write(frames)
    for _ in range(200):  # until the encoder has written something
        if writer._partial.exists() and writer._partial.stat().st_size > 100_000:
            break
        time.sleep(0.05)
    assert writer._process is not None
    writer._process.kill()
    with pytest.raises(VideoWriteError, match=r"clip.mp4: writing stopped after 200 frames .*first \d+ are kept"):
        writer.close()
    assert 0 < len(read_back(path)) <= 200
    assert leftovers(path) == []


class _FullPipe:
    """The encoder's input, which fails with a full disk after `capacity` frames."""

    def __init__(self, pipe, capacity):
        self.pipe, self.capacity = pipe, capacity

    def write(self, data):
        if self.capacity == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.capacity -= 1
        return self.pipe.write(data)

    def close(self):
        self.pipe.close()


def test_a_full_disk_raises_one_error(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    start = VideoWriter._start

    def start_on_a_full_disk(self, width, height):
        process = start(self, width, height)
        process.stdin = _FullPipe(process.stdin, capacity=6)  # pyright: ignore[reportAttributeAccessIssue]
        return process

    monkeypatch.setattr(VideoWriter, "_start", start_on_a_full_disk)
    message = r"clip.mp4: writing stopped after 6 frames \(No space left on device\); the first 6 are kept"
    with pytest.raises(VideoWriteError, match=message), VideoWriter(path) as writer:
        writer.write(clip(4))
        writer.write(clip(4))
    assert len(read_back(path)) == 6
    assert leftovers(path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_file_system_keeps_the_frames_so_far(small_disk):
    path = small_disk / "clip.mp4"
    with pytest.raises(VideoWriteError, match=r"clip.mp4: writing stopped .*No space left.*first \d+ are kept"):
        with VideoWriter(path) as writer:
            for _ in range(60):
                writer.write(torch.rand(3, 10, 64, 64) * 2 - 1)
    assert 0 < len(read_back(path)) < 600
    assert leftovers(path) == []


def test_no_space_for_the_indexed_copy_keeps_the_fragmented_file(small_disk):
    path = small_disk / "clip.mp4"
    with VideoWriter(path) as writer:
        writer.write(torch.rand(3, 45, 64, 64) * 2 - 1)
    assert path.stat().st_size > 128 * 1024
    assert len(read_back(path)) == 45
    assert leftovers(path) == []


def test_frames_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="frames are 48x32, got 32x32"), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(clip(2))
        writer.write(clip(2, 32, 32))
    assert len(read_back(tmp_path / "a.mp4")) == 2


def test_unwritable_targets_are_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="clip.mp4: cannot write to folder .*file"):
        VideoWriter(tmp_path / "file" / "clip.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(IsADirectoryError, match="folder.mp4: expected a file"):
        check_writable(tmp_path / "folder.mp4", ".mp4")
    with pytest.raises(ValueError, match="clip.gif: expected a file name that ends in .mp4"):
        check_writable(tmp_path / "clip.gif", ".mp4")
    with pytest.raises(ValueError, match="frames per second must be positive, got 0"):
        VideoWriter(tmp_path / "clip.mp4", fps=0)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"clip.mp4: cannot write to folder .* \(Permission denied\)"):
        check_writable(tmp_path / "clip.mp4", ".mp4")


def test_images_are_rotated_and_cropped_to_size(tmp_path):
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = (255, 0, 0)
    iio.imwrite(tmp_path / "a.png", picture)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (1, 3, 1, 20, 40)
    assert torch.equal(pixels[0, :, 0, 0, 20], torch.tensor([1.0, -1.0, -1.0]))
    cut = read_image(tmp_path / "a.png", size=(40, 40))
    assert cut.shape == (1, 3, 1, 40, 40)
    assert (cut[0, 0, 0, 20, 3:-3] > 0.8).all()  # only the middle half is left
    with_alpha = np.dstack([picture, np.full((20, 40), 255, np.uint8)])
    iio.imwrite(tmp_path / "rgba.png", with_alpha)
    assert torch.equal(read_image(tmp_path / "rgba.png"), pixels)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # stored rotated by 90 degrees
    Image.fromarray(picture).save(tmp_path / "phone.jpg", exif=orientation)
    assert read_image(tmp_path / "phone.jpg").shape == (1, 3, 1, 40, 20)


def test_fit_keeps_the_aspect_ratio():
    pixels = torch.linspace(-1, 1, 64)[None, None, None, None, :].expand(1, 3, 2, 32, 64)
    found = fit(pixels, (16, 16))
    assert found.shape == (1, 3, 2, 16, 16)
    assert torch.allclose(found[0, 0, 0, 0, [0, -1]], pixels[0, 0, 0, 0, [16, 47]], atol=0.05)
    assert torch.equal(fit(pixels, (32, 64)), pixels)


def test_videos_are_read(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(clip(9))
    whole = read_video(tmp_path / "a.mp4")
    assert whole.shape == (1, 3, 9, 32, 48)
    assert (whole[0] - clip(9)).abs().max() < 0.05
    assert torch.equal(read_video(tmp_path / "a.mp4", frames=5), whole[:, :, :5])
    assert read_video(tmp_path / "a.mp4", size=(16, 16)).shape == (1, 3, 9, 16, 16)
    with pytest.raises(ValueError, match="a.mp4: has 9 frames at 16 a second, expected at least 13"):
        read_video(tmp_path / "a.mp4", frames=13)


def test_errors_name_unreadable_files(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="bad.png: cannot be read as an image"):
        read_image(tmp_path / "bad.png")
    with pytest.raises(ValueError, match="bad.mp4: cannot be read as a video"):
        read_video(tmp_path / "bad.mp4")
    for read in (read_image, read_video):
        with pytest.raises(FileNotFoundError, match="nowhere: found no such file, expected an? (image|video)"):
            read(tmp_path / "nowhere")
        with pytest.raises(IsADirectoryError, match="found a folder, expected an? (image|video)"):
            read(tmp_path)
