"""The live page with `salt live` and the embedded student: what is asked for is seen in the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from salt.io.video import read_video
from tests.helpers.watched_player import BLOCK, UNTIL, WATCH, WATCHED, direction
from tests.live.page_driver import LivePage

ROOT = Path(__file__).parents[2]
PICTURES = os.environ.get("SALT_SCREENSHOTS")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "salt.cli", "live", "a slow red circle moving right", "--nfe", "2"]
    command += ["--port", "0", "--record", str(tmp_path / "clip.mp4")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield process.stdout.readline().split()[0]
    process.terminate()
    process.wait(20)


@pytest.mark.slow
def test_type_a_direction_rewind_stop_and_download(browser, address, tmp_path):
    live = LivePage(browser, "about:blank", viewport={"width": 1280, "height": 860}, color_scheme="dark")
    applied: list[dict] = []

    def told(text: str | bytes) -> None:
        message = json.loads(text) if isinstance(text, str) else {}
        if message.get("type") == "applied":
            applied.append(message)

    live.page.on("websocket", lambda socket: socket.on("framereceived", told))
    live.page.set_default_timeout(60_000)
    live.page.goto(address)
    live.shows(".pill", "Live")
    live.run(WATCH, "./static/player.js")
    live.until(UNTIL, [0, 4 * BLOCK])

    live.page.locator(".prompt-box textarea").fill("a slow red circle moving up")
    live.press("Enter")
    live.shows(".receipts", "on screen after")
    turned = applied[-1]["frame"]
    live.until(UNTIL, [0, turned + 2 * BLOCK + WATCHED])
    pictures = live.run("received")
    print("prompt to frame:", live.text("[data-figure=latency]"), "first frame under it:", turned)
    assert direction(pictures, 0, turned - WATCHED) == "right"
    assert direction(pictures, 0, turned + 2 * BLOCK) == "up"
    if PICTURES:
        live.page.screenshot(path=f"{PICTURES}/live_turned.png")

    live.page.locator(".track").first.click(position={"x": 56 * 2.5, "y": 20})
    live.shows(".receipts", "Rewind: from 0:0")
    live.until(UNTIL, [1, applied[-1]["frame"] + WATCHED])
    assert applied[-1]["control"] == "rewind" and 0 < applied[-1]["frame"] <= 2 * BLOCK
    assert direction(live.run("received"), 1, applied[-1]["frame"]) == "right", "as it was before the turn"

    live.page.get_by_role("button", name="Stop and keep").click()
    live.shows(".pill", "Stopped; the clip is kept")
    with live.page.expect_download() as video:
        live.page.get_by_role("link", name="Video").click()
    with live.page.expect_download() as replay:
        live.page.get_by_role("link", name="Replay").click()
    made = live.run("async () => (await (await fetch(document.querySelector('.downloads a').href.replace("
                    "'recording.mp4', 'state'))).json()).frame")  # fmt: skip
    video.value.save_as(tmp_path / "download.mp4")
    pixels_BCTHW = read_video(tmp_path / "download.mp4")
    print("frames of the downloaded video:", pixels_BCTHW.shape[2], "of the branch:", made)
    assert pixels_BCTHW.shape[1:] == (3, made, 64, 64)
    controls = json.loads(Path(replay.value.path()).read_text())["controls"]
    print(controls)
    assert [control["control"] for control in controls if control["control"] in ("prompt", "rewind")] == [
        "prompt",
        "rewind",
    ]
    live.close()
    assert live.errors == []
