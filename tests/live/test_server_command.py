"""`salt live` with a real session, from its command line."""

import asyncio
import os
import signal
import socket
import threading

import aiohttp
import pytest
from imageio_ffmpeg import count_frames_and_secs

from salt import cli
from tests.helpers import tiny_system
from tests.helpers.live_server import viewer

RIGHT, LEFT = "a fast red circle moving right", "a fast red circle moving left"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_system.folder(tmp_path_factory.mktemp("model")))


def live(watch, monkeypatch, *options):
    """Exit code of `salt live`, with `watch(address, session id)` beside it, which is ended by Ctrl-C after it."""
    failures, threads = [], []

    async def beside(address):
        try:
            async with aiohttp.ClientSession() as client, client.get(f"{address}api/sessions") as response:
                (session,) = (await response.json())["sessions"]
            await watch(address.rstrip("/"), session["id"])
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def opened(address):
        threads.append(threading.Thread(target=lambda: asyncio.run(beside(address))))
        threads[0].start()

    monkeypatch.setattr("webbrowser.open", opened)
    code = cli.main(["live", *RIGHT.split(), "--port", "0", "--nfe", "2", "--device", "cpu", "--open", *options])
    threads[0].join(20)
    assert failures == []
    return code


def test_a_session_is_steered_recorded_and_replayed(model, tmp_path, monkeypatch, capsys):
    video = tmp_path / "clip.mp4"

    async def watch(address, id):
        async with viewer(address, id) as one:
            assert one.welcome["words"] and one.welcome["frames_per_block"] == 12
            await one.control("prompt", prompts=[{"text": LEFT}], switch="recache")
            event = (await one.until("heard"))["event"]
            applied = await one.until("applied", event=event)
            while (frames := await one.frames()).event < event:
                pass
            assert frames.frame >= applied["frame"]
            await one.send(type="played", frame=frames.play_index)
            await one.control("prompt", prompts=[{"text": "no such words"}])
            assert "unknown word 'no'" in (await one.until("refused"))["message"]
            await one.control("rewind", seconds=0.6)
            generation = (await one.until("applied", control="rewind"))["generation"]
            while (frames := await one.frames()).generation < generation:
                pass
            assert frames.flags & 1 and frames.frame == 9
            await one.frames()

    assert live(watch, monkeypatch, "--model", model, "--pace", "free", "--record", str(video)) == 0
    replay = tmp_path / "clip.replay.json"
    told = capsys.readouterr().out
    assert str(video) in told and str(replay) in told
    frames = count_frames_and_secs(video)[0]
    assert frames >= 33 and (frames - 9) % 12 == 0
    again = tmp_path / "again.mp4"
    assert cli.main(["replay", str(replay), "--model", model, "--device", "cpu", "-o", str(again)]) == 0
    assert count_frames_and_secs(again)[0] == frames


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--port", "99999"], "--port: found 99999"),
        (["--lead", "0"], "--lead: found 0"),
        (["--size", "50x32"], "width: found 50 pixels"),
        (["--memory", "window:x"], "--memory"),
        (["--guidance", "nan"], "--guidance"),
        (["--seed", "-1"], "--seed: found -1"),
        (["--token", "short"], "--token must have 8 to 256"),
        (["--host", "0.0.0.0", "--token", ""], "--token must have"),
        (["--record", "clip.avi"], "ends in .mp4"),
    ],
)
def test_wrong_options_are_named(model, options, problem, capsys):
    assert cli.main(["live", *RIGHT.split(), "--model", model, "--device", "cpu", *options]) == 2
    assert problem in capsys.readouterr().err


def test_a_recording_replaces_nothing(model, tmp_path, capsys):
    """Neither a video nor the replay beside it."""
    for name in ("clip.mp4", "clip.replay.json"):
        file = tmp_path / name
        file.write_text("older")
        arguments = ["--record", str(tmp_path / "clip.mp4")]
        assert cli.main(["live", *RIGHT.split(), "--model", model, "--device", "cpu", *arguments]) == 2
        assert str(file) in capsys.readouterr().err and file.read_text() == "older"
        file.unlink()


def test_a_session_that_cannot_begin_leaves_no_file(model, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        arguments = ["--record", str(tmp_path / "clip.mp4"), "--port", port]
        assert cli.main(["live", *RIGHT.split(), "--model", model, "--device", "cpu", *arguments]) == 2
    assert f"--port: found {port}" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
