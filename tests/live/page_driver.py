"""A headless Chromium with the live page in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.helpers.comfyui_page import CHROMIUM, chromium

__all__ = ["CHROMIUM", "LivePage", "chromium"]


class LivePage:
    """One open page. `errors` gathers what its console and scripts report."""

    def __init__(self, browser: Any, url: str, **context: Any):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def close(self) -> None:
        self.context.close()

    def until(self, condition: str, argument: Any = None) -> None:
        """Wait for a JavaScript condition, a function of `argument`."""
        self.page.wait_for_function(condition, arg=argument, polling=20)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def shows(self, selector: str, wanted: str) -> None:
        self.until("([s, w]) => document.querySelector(s)?.innerText.includes(w)", [selector, wanted])

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def row(self) -> list[list[int]]:
        """The picture's middle row, [red, green, blue] of each pixel."""
        read = """() => { const c = document.querySelector('canvas.picture');
          const { data } = c.getContext('2d').getImageData(0, c.height / 2, c.width, 1);
          return Array.from({ length: c.width }, (_, x) => [...data.slice(4 * x, 4 * x + 3)]) }"""
        return self.page.evaluate(read)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


def wait(condition: Callable[[], object], page: LivePage, seconds: float = 10) -> None:
    """Wait for something on the server's side, with the page alive meanwhile."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        page.page.wait_for_timeout(20)
    raise AssertionError("waited in vain")
