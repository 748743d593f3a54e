"""A headless Chromium with ComfyUI's page in it, for the tests of the front end.

Pictures of each step go to SALT_SCREENSHOTS, a folder, where that is set.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).parents[2] / "nodes" / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RUN_TIMEOUT_MS = 240_000  # milliseconds for what a busy machine takes its time for: a run, a page, what it shows
OURS = "/extensions/ComfyUI-Salt/"

# Records the server's events, in order, from `listen` on; pictures by a digest of their bytes.
LISTEN = """() => {
  window.heard = [];
  const names = ['execution_start', 'executed', 'execution_success', 'execution_error', 'execution_interrupted'];
  for (const name of names) app.api.addEventListener(name, ({detail}) => heard.push({name, detail}));
  app.api.addEventListener('b_preview_with_metadata', async ({detail}) => {
    const event = {name: 'preview', node: detail.displayNodeId};
    heard.push(event);
    const digest = await crypto.subtle.digest('SHA-256', await detail.blob.arrayBuffer());
    event.digest = [...new Uint8Array(digest)].join(',');
  });
}"""
DROP = """([name, text]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([text], name, {type: 'application/json'}));
  const canvas = document.querySelector('#graph-canvas');
  for (const kind of ['dragenter', 'dragover', 'drop'])
    canvas.dispatchEvent(new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""

# Where the workflow comes from that the page has opened.
OPENED = "() => app.extensionManager?.workflow?.activeWorkflow?.path"
# The second of them begins when all that was due in the first is drawn.
NEXT_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
DARK = "Boolean(document.querySelector(':is(html, body).dark-theme'))"
# When a setting has taken effect.
TAKEN = {
    "Comfy.VueNodes.Enabled": "on => Boolean(LiteGraph.vueNodesMode) === on",
    "Comfy.ColorPalette": f"name => {DARK} === (name !== 'light')",
}

# Nodes that lie over one another or reach out of the group that their corner is in, as they are drawn now. 0.8's new
# design enlarges a graph, and rounds its groups 6 pixels smaller than what is in them.
MISPLACED = """() => {
  const slack = 8;
  const nodes = app.graph._nodes.map(n => [n.type, ...n.getBounding()]), found = [];
  const groups = app.graph._groups.map(g => g._bounding ?? g.bounding);
  for (const [type, x, y, w, h] of nodes) {
    const frame = groups.find(([gx, gy, gw, gh]) => x >= gx && x < gx + gw && y >= gy && y < gy + gh);
    if (!frame) continue;
    const [right, bottom] = [frame[0] + frame[2] + slack, frame[1] + frame[3] + slack];
    if (x + w > right || y + h > bottom) found.push(`${type} reaches out`);
  }
  for (const [i, [type, x, y, w, h]] of nodes.entries())
    for (const [other, ox, oy, ow, oh] of nodes.slice(i + 1))
      if (x < ox + ow && ox < x + w && y < oy + oh && oy < y + h) found.push(`${type} over ${other}`);
  return found;
}"""


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A browser, started with further flags. Skips the test where playwright or Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *flags])
        yield browser
        browser.close()


@contextmanager
def bare_page(browser: Any) -> Iterator[Any]:
    """An empty page that can import the modules of nodes/web, without any ComfyUI."""
    page = browser.new_page()
    page.set_default_timeout(RUN_TIMEOUT_MS)
    kinds = {".js": "text/javascript", ".css": "text/css"}

    def serve(route: Any) -> None:
        path = WEB / route.request.url.rsplit("/", 1)[-1]
        if path.suffix in kinds:
            route.fulfill(body=path.read_text(), content_type=kinds[path.suffix])
        else:
            route.fulfill(body="<!doctype html><link rel=stylesheet href=salt.css>", content_type="text/html")

    page.route("http://salt.test/**", serve)
    page.goto("http://salt.test/")
    yield page
    page.close()


class ComfyPage:
    """ComfyUI's page as a user has it. `errors`: what our files did wrong, from the console and from exceptions."""

    def __init__(self, browser: Any, url: str) -> None:
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": 1500, "height": 850})
        self.page.set_default_timeout(RUN_TIMEOUT_MS)
        self.page.on("console", self._said)
        self.page.on("pageerror", self._thrown)
        self.url = url
        self.open()

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_function("window.app?.graph && document.querySelector('#graph-canvas')")
        self.page.wait_for_function("!!LiteGraph.registered_node_types['SaltRollout']")
        self.page.wait_for_function(OPENED)  # the page opens its last workflow some time later
        self.drawn()
        self.page.keyboard.press("Escape")

    def drawn(self) -> None:
        """Wait until the page has drawn what was changed."""
        self.page.evaluate(NEXT_FRAMES)

    def until(self, script: str, holds: Callable[[Any], bool], argument: Any = None) -> Any:
        """What a script returns, once `holds` is true of it. Drawing, saving and loading end at times of their own."""
        end = time.monotonic() + RUN_TIMEOUT_MS / 1000
        while not holds(found := self.page.evaluate(script, argument)):
            assert time.monotonic() < end, f"the page stays at {found}"
            self.page.wait_for_timeout(50)
        return found

    def _thrown(self, error: Any) -> None:
        """Exceptions that passed through our files; the page of 0.3.64 throws some of its own."""
        stack = error.stack or ""
        print(f"exception in the page: {error.message}\n{stack}")
        if OURS in stack:
            self.errors.append(f"{error.message} ({stack})")

    def _said(self, message: Any) -> None:
        where = message.location.get("url", "")
        if where.endswith("/en.md"):
            return  # the frontend asks for docs/NODE/en.md first, and takes docs/NODE.md where that is missing
        if message.type in ("error", "warning") and (OURS in where or "salt" in message.text.lower()):
            self.errors.append(f"{message.text} ({where})")

    def setting(self, name: str, value: Any) -> None:
        self.page.evaluate("([n, v]) => app.extensionManager.setting.set(n, v)", [name, value])
        if (taken := TAKEN.get(name)) is not None:
            self.page.wait_for_function(taken, arg=value)
        self.drawn()

    def drop(self, file: Path) -> None:
        """A workflow file, dragged in from outside."""
        self.page.evaluate(DROP, [file.name, file.read_text()])
        self.page.wait_for_function(f"name => ({OPENED})()?.includes(name)", arg=file.stem)
        self.page.wait_for_function("t => app.graph._nodes.some(n => n.type === t)", arg="SaltRollout")
        self.drawn()

    def lone(self, kind: str) -> None:
        """A graph of one node."""
        self.page.evaluate(
            "kind => { app.graph.clear(); const n = LiteGraph.createNode(kind); n.pos = [500, 200]; app.graph.add(n) }",
            kind,
        )
        self.page.wait_for_function("() => app.graph._nodes.length === 1")
        self.drawn()

    def look_at(self, *kinds: str) -> None:
        """Bring the nodes of these kinds into view."""
        self.page.evaluate(
            """kinds => { const nodes = app.graph._nodes.filter(n => kinds.includes(n.type));
            const [x, y] = [0, 1].map(i => Math.min(...nodes.map(n => n.pos[i])));
            app.canvas.ds.scale = 0.85; app.canvas.ds.offset = [120 - x, 160 - y]; app.canvas.setDirty(true, true) }""",
            kinds,
        )
        self.drawn()

    def widget(self, kind: str, name: str) -> Any:
        return self.page.evaluate(
            "([k, n]) => app.graph._nodes.find(x => x.type === k).widgets.find(w => w.name === n).value", [kind, name]
        )

    def set_widget(self, kind: str, name: str, value: Any) -> None:
        self.page.evaluate(
            "([k, n, v]) => { app.graph._nodes.find(x => x.type === k).widgets.find(w => w.name === n).value = v }",
            [kind, name, value],
        )

    def misplaced(self) -> list[str]:
        return self.page.evaluate(MISPLACED)

    def listen(self) -> None:
        self.page.evaluate(LISTEN)

    def heard(self, name: str) -> list[dict[str, Any]]:
        self.page.wait_for_function("heard.every(e => e.name !== 'preview' || e.digest)")
        return self.page.evaluate("name => heard.filter(e => e.name === name)", name)

    def press_run(self) -> None:
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def wait_for(self, name: str, times: int = 1) -> None:
        """Wait for `times` events `name` of the server; fails at once where a node fails."""
        condition = (
            "([n, t]) => heard.some(e => e.name === 'execution_error') || heard.filter(e => e.name === n).length >= t"
        )
        self.page.wait_for_function(condition, arg=[name, times])
        failed = self.heard("execution_error")
        assert not failed or name == "execution_error", failed[0]["detail"]["exception_message"]

    def open_help(self, heading: str) -> None:
        """The help page of the one node there is, as its info button opens it."""
        self.page.evaluate("app.canvas.selectNode(app.graph._nodes[0])")
        self.page.get_by_test_id("info-button").click()
        self.page.locator("h1", has_text=heading).wait_for()

    def drag(self, selector: str, by: float) -> None:
        """Hold the middle of an element, once it stands still, and let go `by` pixels to the right."""
        self.page.locator(selector).hover()
        box = self.page.locator(selector).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + by, y, steps=8)
        self.page.mouse.up()

    def picture(self, name: str) -> None:
        if folder := os.environ.get("SALT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"comfyui_{name}.png")

    def close(self) -> None:
        self.page.close()
