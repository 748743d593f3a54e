"""The README's recording of a live session, docs/images/live.webp, and two pictures of its page: `make live-picture`.

A real `salt live` with the embedded model in Chromium, steered by the keys of `KEYS`; 20 seconds in real time. Then
another session with a branch, as a wide window shows it (live_page.webp) and a phone (live_phone.webp).
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from PIL import Image

from .comfy_page import IMAGES, ROOT

SECONDS, FRAME_MS = 20, 200
PROMPT = "a slow red circle moving right"
VIEWPORT, WIDTH = {"width": 1240, "height": 760}, 868  # of the page, and of the picture
WARM_UP_MS = 4000  # before the recording begins, so that the strip has its first pictures
# Seconds, and the key that is pressed: directions, colour, and going back three seconds.
KEYS = ((2, "ArrowUp"), (5, "ArrowLeft"), (8, "c"), (11, "ArrowDown"), (14, "r"), (17, "ArrowRight"))
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 420, "height": 900}  # windows of the two pictures
STEP_MS = 3000  # between two controls before them
SIZE_LIMIT = 2_000_000  # bytes


@contextmanager
def live_address() -> Iterator[str]:
    command = [sys.executable, "-m", "salt.cli", "live", PROMPT, "--nfe", "2", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait(60)


def record() -> list[Image.Image]:
    """Screenshots at the animation's pace, with the keys pressed at their moments."""
    from tests.helpers.comfyui_page import chromium
    from tests.live.page_driver import LivePage

    pictures: list[Image.Image] = []
    keys = list(KEYS)
    with live_address() as address, chromium() as browser:
        live = LivePage(browser, address, viewport=VIEWPORT, color_scheme="dark")
        live.page.locator("canvas.picture").first.wait_for()
        live.page.wait_for_timeout(WARM_UP_MS)
        began = time.monotonic()
        while len(pictures) < SECONDS * 1000 // FRAME_MS:
            at = time.monotonic() - began
            while keys and keys[0][0] <= at:
                live.press(keys.pop(0)[1])
            shot = Image.open(io.BytesIO(live.page.screenshot(type="jpeg", quality=90))).convert("RGB")
            shot.thumbnail((WIDTH, WIDTH))
            # A screenshot that came late stands for the moments that it missed.
            while len(pictures) * FRAME_MS / 1000 <= time.monotonic() - began:
                pictures.append(shot)
            live.page.wait_for_timeout(max(0, len(pictures) * FRAME_MS - (time.monotonic() - began) * 1000))
        live.close()
    return pictures


def photograph() -> None:
    """The page of a session with three prompts and a branch, and the same on a phone."""
    from tests.helpers.comfyui_page import chromium
    from tests.live.page_driver import LivePage

    with live_address() as address, chromium() as browser:
        live = LivePage(browser, address, viewport=WIDE, color_scheme="dark")
        live.page.locator("canvas.picture").first.wait_for()
        for key in ("ArrowUp", "ArrowLeft"):
            live.page.wait_for_timeout(STEP_MS)
            live.press(key)
        live.page.wait_for_timeout(STEP_MS)
        live.page.get_by_role("button", name="new branch").click()
        live.page.locator(".strip-row .track").first.click(position={"x": 130, "y": 20})
        for key in ("ArrowDown", "c", "ArrowRight"):
            live.page.wait_for_timeout(STEP_MS)
            live.press(key)
        live.page.wait_for_timeout(STEP_MS)
        save(live.page.screenshot(), "live_page")
        live.close()
        phone = LivePage(browser, address, viewport=PHONE, color_scheme="light")
        phone.page.locator("canvas.picture").first.wait_for()
        phone.page.wait_for_timeout(STEP_MS)
        save(phone.page.screenshot(full_page=True), "live_phone")
        phone.close()


def save(picture: bytes, name: str) -> None:
    Image.open(io.BytesIO(picture)).convert("RGB").save(IMAGES / f"{name}.webp", quality=80, method=6)


def main() -> None:
    if find_spec("playwright") is None:
        sys.exit("playwright is not installed: pip install playwright")
    photograph()
    pictures, target = record(), IMAGES / "live.webp"
    for quality in (75, 60, 45, 30):
        pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0, quality=quality)
        if (size := target.stat().st_size) < SIZE_LIMIT:
            print(f"docs/images/live.webp: {len(pictures)} frames, quality {quality}, {size / 1e6:.2f} MB")
            return
    sys.exit(f"{target} has {size} bytes at the lowest quality, expected less than {SIZE_LIMIT}")


if __name__ == "__main__":
    main()
