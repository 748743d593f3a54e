"""Rollouts that run, on their nodes in ComfyUI's page: steered, rewound, stopped and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salt.io.video import read_video
from tests.helpers.comfyui_page import RUN_TIMEOUT_MS
from tests.helpers.comfyui_server import NEWER_PAGE
from tests.helpers.watched_player import BLOCK, UNTIL, WATCH, WATCHED, direction

FRONT_ENDS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"], indirect=True)

# A graph of these kinds of nodes, from left to right: {kind: {widget: value}}, [[kind, output, kind, input]]
GRAPH = """([kinds, links]) => {
  app.graph.clear();
  const nodes = {};
  Object.entries(kinds).forEach(([kind, values], i) => {
    const node = (nodes[kind] = LiteGraph.createNode(kind));
    node.pos = [50 + 350 * i, 100];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
  });
  for (const [from, output, to, input] of links)
    nodes[from].connect(output, nodes[to], nodes[to].inputs.findIndex(slot => slot.name === input));
}"""
SMALL = {"width": 64, "height": 64, "nfe": "2"}
LIVE = [
    {"SaltLoadTiny": {}, "SaltLive": {**SMALL, "prompt": "a slow red circle moving right"}},
    [["SaltLoadTiny", i, "SaltLive", name] for i, name in enumerate(("model", "clip", "vae"))],
]
ROLLOUT = [
    {
        "SaltLoadTiny": {},
        "CLIPTextEncode": {"text": "a slow red circle moving right"},
        "SaltRollout": {**SMALL, "seconds": 300},
        "SaltDecode": {},
        "PreviewImage": {},
    },
    [
        ["SaltLoadTiny", 1, "CLIPTextEncode", "clip"],
        ["SaltLoadTiny", 0, "SaltRollout", "model"],
        ["CLIPTextEncode", 0, "SaltRollout", "positive"],
        ["SaltRollout", 0, "SaltDecode", "latents"],
        ["SaltLoadTiny", 2, "SaltDecode", "vae"],
        ["SaltDecode", 0, "PreviewImage", "images"],
    ],
]
# Parts of the view that reach out of it at the right, as a user sees it.
CUT_OFF = """() => {
  const view = document.querySelector('.salt-live-node'), { right } = view.getBoundingClientRect();
  return [...view.querySelectorAll('*')].filter(e => !e.closest('.strip-rows') && e.offsetParent &&
    e.getBoundingClientRect().right > right + 0.5).map(e => e.outerHTML.slice(0, 200));
}"""
# Moves the canvas so that the view lies between ComfyUI's own panels.
MOVE = """() => {
  const { left, top } = document.querySelector('.salt-live-node').getBoundingClientRect(), { ds } = app.canvas;
  ds.offset = [ds.offset[0] + (250 - left) / ds.scale, ds.offset[1] + (120 - top) / ds.scale];
  app.canvas.setDirty(true, true);
}"""


GREEN = """() => { const c = document.querySelector('canvas.picture');
  const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);
  let n = 0; for (let i = 0; i < data.length; i += 4) n += data[i + 1] > data[i] + 30 && data[i + 1] > 90;
  return n > data.length / 16 }"""


def report(comfy, kind: str) -> str:
    """What a node said when it had run."""
    number = comfy.page.evaluate("kind => String(app.graph._nodes.find(n => n.type === kind).id)", kind)
    (said,) = [e["detail"]["output"] for e in comfy.heard("executed") if e["detail"]["node"] == number]
    return said["text"][0]


@pytest.fixture
def vue(request, page_server) -> bool:
    """Whether the page draws nodes by Nodes 2.0."""
    if request.param and page_server.version < NEWER_PAGE:
        pytest.skip("Nodes 2.0 of this page draws no widget that a node gets while it runs")
    return request.param


@FRONT_ENDS
def test_a_clip_is_steered_on_its_node(comfy, page_server, vue):
    page, applied = comfy.page, []

    def told(text: str | bytes) -> None:
        message = json.loads(text) if isinstance(text, str) else {}
        if message.get("type") == "applied":
            applied.append(message)

    def until(generation: int, frame: int) -> None:
        page.wait_for_function(UNTIL, arg=[generation, frame], polling=200)

    page.on("websocket", lambda socket: socket.on("framereceived", told))
    comfy.setting("Comfy.VueNodes.Enabled", vue)
    page.evaluate(GRAPH, LIVE)
    comfy.set_widget("SaltLive", "seed", int(vue))  # what has run already would not run again
    comfy.look_at("SaltLive")
    comfy.listen()
    page.evaluate(WATCH, f"{page_server.url}/salt/live/static/player.js")
    comfy.press_run()
    view = page.locator(".salt-live-node")
    view.locator(".picture").wait_for()
    until(0, 2 * BLOCK)
    page.evaluate(MOVE)
    comfy.drawn()
    comfy.picture(f"live_{'vue' if vue else 'canvas'}")
    on_node = "view => view.offsetWidth <= app.graph._nodes.find(n => n.type === 'SaltLive').size[0]"
    assert view.evaluate(on_node) and page.evaluate(CUT_OFF) == []
    assert view.evaluate("view => getComputedStyle(view).colorScheme") == "dark", "as ComfyUI is"

    view.locator(".prompt-box textarea").fill("a slow red circle moving up")
    view.get_by_role("button", name="Send").click()
    view.get_by_text("on screen after").wait_for()
    turned = applied[-1]["frame"]
    until(0, turned + 2 * BLOCK + WATCHED)
    pictures = page.evaluate("received")
    assert direction(pictures, 0, turned - WATCHED) == "right"
    assert direction(pictures, 0, turned + 2 * BLOCK) == "up"

    zoom = 0.85  # of the canvas, see look_at
    view.locator(".track").first.click(position={"x": 56 * 1.9 * zoom, "y": 20 * zoom})
    view.get_by_text("Rewind").first.wait_for()
    page.wait_for_function("seen.some(p => p.generation === 1)", polling=200)
    back = applied[-1]["frame"]
    assert applied[-1]["control"] == "rewind" and 0 < back <= BLOCK, "the block that was clicked"
    until(1, back + WATCHED)
    assert direction(page.evaluate("received"), 1, back) == "right", "as it was before the turn"

    view.get_by_role("button", name="Stop and keep").click()
    comfy.wait_for("execution_success")
    view.wait_for(state="detached")
    path, _, rest = report(comfy, "SaltLive").rpartition(": ")
    print(path, rest, applied)
    clip_BCTHW = read_video(Path(path))
    assert clip_BCTHW.shape[1:] == (3, int(rest.split()[0]), 64, 64) and clip_BCTHW.shape[2] > back + WATCHED


def test_the_full_page_sends_its_camera(comfy, browser):
    """Chromium's fake camera shows green with a turning disc; at strength 0 the session shows what the camera sees."""
    comfy.page.evaluate(GRAPH, LIVE)
    comfy.set_widget("SaltLive", "seed", 7)
    comfy.look_at("SaltLive")
    comfy.listen()
    comfy.press_run()
    link = comfy.page.locator(".salt-live-node").get_by_role("link", name="Full page")
    link.wait_for()
    page = browser.new_page(permissions=["camera"])
    page.set_default_timeout(RUN_TIMEOUT_MS)
    page.goto(link.evaluate("a => a.href"))
    page.get_by_role("button", name="Ask to steer").click()
    comfy.page.locator(".salt-live-node").get_by_role("button", name="Hand over").click()
    page.get_by_role("button", name="Camera").click()
    page.get_by_label("Strength").fill("0")
    page.get_by_label("Strength").dispatch_event("change")
    page.wait_for_function(GREEN, polling=200)
    page.get_by_role("button", name="Stop and keep").click()
    comfy.wait_for("execution_success")
    assert report(comfy, "SaltLive").endswith("prompts do not hold what else was changed: pictures")
    page.close()


@FRONT_ENDS
def test_stop_and_keep_ends_a_rollout_after_its_block(comfy, vue):
    comfy.setting("Comfy.VueNodes.Enabled", vue)
    comfy.page.evaluate(GRAPH, ROLLOUT)
    comfy.set_widget("SaltRollout", "seed", int(vue))
    comfy.look_at("SaltRollout")
    comfy.listen()
    comfy.press_run()
    comfy.page.wait_for_function("heard.some(e => e.name === 'preview')")
    button = comfy.page.get_by_role("button", name="Stop and keep")
    button.click()
    comfy.wait_for("execution_success")
    button.wait_for(state="detached")
    comfy.picture(f"stopped_{'vue' if vue else 'canvas'}")
    said = report(comfy, "SaltRollout")
    print(said)
    assert "stopped and kept at" in said and "of 300" in said
