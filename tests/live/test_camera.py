"""Blocks from pictures of a camera, whose latest win, and of a file: engine, server, and Chromium's fake camera."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from salt.errors import InputError
from salt.io.video import VideoWriter
from salt.live.controls import Strength
from salt.live.engine import LiveEngine
from salt.live.messages import FrameBatch, Pictured
from salt.live.pipeline_host import PipelineHost
from salt.live.replay import replay_of
from salt.live.server.client_messages import read_picture
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from salt.live.video_feed import MAX_PICTURES, OFF_SECONDS, CameraPictures, FilePictures
from salt.memory import MemoryPolicy
from salt.models.streaming_vae import encode_video
from salt.spec import StudentSpec
from tests.helpers import tiny_system
from tests.helpers.fake_live_session import FakeSession
from tests.helpers.live_server import served, viewer
from tests.live.page_driver import LivePage, chromium

ROOT = Path(__file__).parents[2]
START = LiveSettings("a red circle moving right", nfe=2, pace="free", frames=9)


def jpeg(grey: int, size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def greys(pictures) -> list[int]:
    return [int(frame.mean()) for frame in pictures.frames]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_latest_pictures_win():
    clock = Clock()
    camera = CameraPictures(clock)
    assert camera.take(12, 9) is None, "none has come"
    for grey in range(0, 200, 2):
        camera.put(jpeg(grey), "one", float(grey))
    taken = camera.take(12, 9)
    assert taken.begins and len(taken.frames) == 9 and taken.stamp.sent_at == 198 and greys(taken)[-1] == 198
    assert greys(taken)[0] >= 198 - 2 * MAX_PICTURES and greys(taken) == sorted(greys(taken))
    camera.put(jpeg(50), "one", 1.0)
    camera.put(jpeg(90), "one", 2.0)
    taken = camera.take(12, 9)
    assert not taken.begins and greys(taken) == [50] * 6 + [90] * 6
    assert greys(camera.take(12, 9)) == [90] * 12, "the camera is late: its last picture again"
    clock.now += OFF_SECONDS + 1
    assert camera.take(12, 9) is None, "it is off"
    camera.put(jpeg(10), "one", 3.0)
    assert camera.take(12, 9).begins


def test_a_camera_that_comes_back_begins_a_new_stream(host):
    clock = Clock()
    camera = CameraPictures(clock)
    feed = host.new_feed(camera)

    def begun() -> torch.Tensor:
        camera.put(jpeg(120), "one", 0.0)
        latents = feed.latents(3)
        assert latents is not None and latents.shape[2] == 3
        return latents

    first, following = begun(), begun()
    assert not torch.equal(first, following), "the stream goes on"
    clock.now += OFF_SECONDS + 1
    assert feed.latents(3) is None
    assert torch.equal(first, begun())


def test_pictures_that_are_none():
    camera = CameraPictures()
    with pytest.raises(InputError, match="picture: found 3 bytes that are no JPEG"):
        camera.put(b"abc", "one", 0.0)
    camera.put(jpeg(10)[:100], "one", 0.0)
    camera.put(jpeg(10, (4096, 8)), "one", 0.0)
    assert camera.take(12, 9) is None
    header = struct.pack("<4sd", b"SLC1", 5.5)
    assert read_picture(header + b"x").sent_at == 5.5
    for data in (b"", b"SLC1", header, b"SLF1" + header[4:] + b"x", struct.pack("<4sd", b"SLC1", float("nan")) + b"x"):
        with pytest.raises(ValueError, match="message: found|t: found"):
            read_picture(data)


@pytest.fixture(scope="module")
def host() -> PipelineHost:
    return PipelineHost(tiny_system.pipeline())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "in.mp4"
    with VideoWriter(path, fps=16) as video:
        video.write(np.stack([np.full((32, 32, 3), grey, np.uint8) for grey in range(0, 200, 10)]))
    return path


def test_blocks_from_a_file_that_begins_again(host, clip):
    made = {}
    for strength in (0.0, 0.6, 1.0):
        feed = host.new_feed(FilePictures(clip))
        engine = LiveEngine(host, LiveSettings("a red circle moving right", nfe=2, strength=strength), feed=feed)
        made[strength] = torch.cat([b.latents for b in engine.blocks(lambda: engine.made < 3)], dim=2)  # noqa: B023
        assert feed.used
    with pytest.raises(InputError, match="replay is not kept of this session: the pictures"):
        replay_of(engine)
    pictures = FilePictures(clip).take(12, 33).frames  # 20 frames, then from the beginning
    assert [round(p.mean() / 10) for p in (pictures[0], pictures[19], pictures[20], pictures[32])] == [0, 19, 0, 12]
    pixels = torch.from_numpy(np.stack(pictures)).float().div(127.5).sub(1).permute(3, 0, 1, 2)[None]
    assert torch.allclose(made[0.0], encode_video(host.pipe.vae, pixels), atol=1e-4)
    plain = LiveEngine(host, LiveSettings("a red circle moving right", nfe=2))
    assert torch.equal(made[1.0], torch.cat([b.latents for b in plain.blocks(lambda: plain.made < 3)], dim=2))
    assert not torch.allclose(made[0.6], made[0.0], atol=0.1) and not torch.allclose(made[0.6], made[1.0], atol=0.1)


def test_streamdiffusion2_s_noise_follows_the_pictures(clip):
    pipe = tiny_system.pipeline()
    pipe.spec = StudentSpec(1, (700, 500), 8.0, MemoryPolicy.parse("overwrite:3,window:6"), rule="streamdiffusion2")
    host = PipelineHost(pipe)
    feed = host.new_feed(FilePictures(clip))
    engine = LiveEngine(host, LiveSettings("a red circle moving right", strength=0.8), feed=feed)
    starts = [block.kept.stop for block in engine.blocks(lambda: engine.made < 4)]
    scale = 0.8
    for _ in range(3):  # every picture is lighter by 10 of 255
        scale = 0.9 * (0.8 - 0.1 * 10 / 127.5 / 0.2) + 0.1 * scale
    assert starts == [2, 3, 4, 5] and feed.motion == pytest.approx(0.39, abs=0.06)
    assert feed._scale == pytest.approx(scale, abs=0.01)


def test_a_session_tells_which_picture_a_block_was_made_from(host):
    camera = CameraPictures()
    session = LiveSession(host, START, feed=host.new_feed(camera))
    watching = session.subscribe()
    session.send(Strength(0.5))
    session.picture(jpeg(100), "me", 7.0)
    session.run()
    messages = list(iter(watching.get, None))
    pictured = [m for m in messages if isinstance(m, Pictured)]
    assert pictured and pictured[-1].sender == "me" and pictured[-1].t == 7.0
    assert sum(isinstance(m, FrameBatch) for m in messages) == 3 and session.state().strength == 0.5
    assert session.state().pictures == "camera"
    with pytest.raises(InputError, match="replay"):
        session.replay()
    other = LiveSession(host, START)
    with pytest.raises(InputError, match="strength has no effect: this session takes no pictures"):
        other.send(Strength(0.5))
    with pytest.raises(InputError, match="picture cannot be used"):
        other.picture(jpeg(1), "me", 0.0)


def test_what_the_server_takes():
    header = struct.pack("<4sd", b"SLC1", 1.0)

    async def run():
        session = FakeSession()
        taken = []
        session.picture = lambda *picture: taken.append(picture)
        async with served(session) as (address, id), viewer(address, id) as one, viewer(address, id) as two:
            await one.socket.send_bytes(header + jpeg(5))
            await one.socket.send_bytes(b"nonsense")
            assert "expected a picture" in (await one.until("refused", field="picture"))["message"]
            assert taken == [(jpeg(5), one.welcome["viewer"], 1.0)]
            await two.socket.send_bytes(header + jpeg(5))
            assert (await two.until("refused", field="steering"))["ref"] is None
            assert len(taken) == 1

    asyncio.run(run())


def test_a_wrong_file_is_one_error(tmp_path, capsys):
    from salt.cli import main

    path = tmp_path / "text.mp4"
    path.write_text("no video")
    assert main(["live", "a red circle", "--video", str(path), "--port", "0"]) != 0
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "text.mp4: cannot be read as a video" in error and len(error) <= 400


@pytest.fixture
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "salt.cli", "live", "a slow red circle moving right", "--nfe", "2", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield process.stdout.readline().split()[0]
    process.terminate()
    process.wait(20)


@pytest.mark.slow
def test_a_camera_in_the_browser(address):
    """Chromium's fake camera shows green with a turning disc; at strength 0 the page shows what the camera sees."""
    flags = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    with chromium(*flags) as browser:
        live = LivePage(browser, "about:blank", permissions=["camera"])
        live.page.set_default_timeout(60_000)
        live.page.goto(address)
        live.shows(".pill", "Live")
        live.page.get_by_role("button", name="Camera").click()
        live.page.get_by_label("Strength").fill("0")
        live.page.get_by_label("Strength").dispatch_event("change")
        live.shows(".receipts", "Strength")
        live.until("() => /^[0-9.]+ s$/.test(document.querySelector('[data-figure=glass]').textContent)")
        green = """() => { const c = document.querySelector('canvas.picture');
          const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);
          let n = 0; for (let i = 0; i < data.length; i += 4) n += data[i + 1] > data[i] + 30 && data[i + 1] > 90;
          return n > data.length / 16 }"""
        live.until(green)
        print("camera to screen:", live.text("[data-figure=glass]"))
        if pictures := os.environ.get("SALT_SCREENSHOTS"):
            live.page.screenshot(path=f"{pictures}/live_camera.png")
        live.page.get_by_role("button", name="Camera off").click()
        live.until("() => document.querySelector('.camera button').getAttribute('aria-pressed') === 'false'")
        live.close()
        assert live.errors == []
