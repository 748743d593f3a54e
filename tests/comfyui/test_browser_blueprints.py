"""Blueprints placed from the node library by mouse, connected, and run, as a person without a workflow does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from salt.io.video import read_video
from tests.helpers.comfyui_server import NEWER_PAGE, twin
from tests.helpers.watched_player import UNTIL, WATCH
from workflows.maker.building_blocks import CLIP_NAME, TINY_SEED

DESIGNS = {"canvas": False, "vue": True}  # ComfyUI's two ways to draw a node
TEXT_TO_VIDEO, EXTEND, LIVE = (f"Salt {kind} video (needs nothing)" for kind in ("text to", "extend", "live"))
LEFT, MIDDLE, RIGHT = (260, 300), (800, 450), (1100, 300)  # places on the page

# Where a socket of a node is on the page.
SOCKET = """([title, side, name]) => {
  const node = app.graph._nodes.find(n => n.title === title), { ds, canvas } = app.canvas;
  const slot = node[side].findIndex(s => s.name === name), { left, top } = canvas.getBoundingClientRect();
  const [x, y] = side === 'inputs' ? node.getInputPos(slot) : node.getOutputPos(slot);
  return [(x + ds.offset[0]) * ds.scale + left, (y + ds.offset[1]) * ds.scale + top];
}"""
HANGING = "app.canvas.state.ghostNodeId != null"  # a node that was found hangs on the mouse
SEED = "seed => { app.graph._nodes[0].widgets.find(w => w.name === 'seed').value = seed }"
WIRED = "title => app.graph._nodes.find(n => n.title === title).inputs.filter(s => s.link).map(s => s.name)"


class Newcomer:
    """What a person does on an empty canvas by mouse and keyboard; each is one action, and they are counted."""

    def __init__(self, comfy, page_server, design: str) -> None:
        if page_server.version < NEWER_PAGE:
            pytest.skip("this page has no blueprints of packs in its node search")
        self.comfy, self.page, self.count = comfy, comfy.page, 0
        self.page.set_viewport_size({"width": 1600, "height": 900})
        comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])
        comfy.open()
        self.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.page.wait_for_function("app.graph._nodes.length === 0")
        comfy.drawn()

    def find(self, words: str, title: str, place: tuple[int, int]) -> None:
        """Double-click the canvas, type, and press Enter; the node then hangs on the mouse."""
        self.count += 3
        present = len(self.titles)
        self.until(lambda: self.page.mouse.dblclick(*place), "document.activeElement.matches('input')")
        self.page.keyboard.type(words)
        self.page.get_by_text(title).last.wait_for()
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("present => app.graph._nodes.length > present", arg=present)
        self.comfy.drawn()

    def until(self, act: Callable[[], None], holds: str) -> None:
        """Do it again where the page has missed it, as on a busy machine."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        for _ in range(4):
            act()
            try:
                self.page.wait_for_function(holds, timeout=10_000)
                return
            except PlaywrightTimeout:
                continue
        raise AssertionError(f"never came: {holds}")

    def put_down(self, place: tuple[int, int]) -> None:
        self.count += 1
        self.page.mouse.move(place[0] + 20, place[1] + 20, steps=5)
        self.until(lambda: self.page.mouse.click(*place), f"!({HANGING})")
        self.comfy.drawn()

    def connect(self, source: str, output: str, target: str, socket: str) -> None:
        self.count += 1
        self.page.mouse.move(*self.page.evaluate(SOCKET, [source, "outputs", output]))
        self.comfy.drawn()
        self.page.mouse.down()
        self.page.mouse.move(*self.page.evaluate(SOCKET, [target, "inputs", socket]), steps=10)
        self.comfy.drawn()
        self.page.mouse.up()
        self.comfy.until(WIRED, lambda names: socket in names, target)

    def press_run(self) -> None:
        self.count += 1
        self.comfy.press_run()

    def seed(self, design: str) -> int:
        """A seed for the first node by which it runs in each design: what has run before would not run again."""
        seed = 20 + list(DESIGNS).index(design)
        self.page.evaluate(SEED, seed)
        return seed

    @property
    def titles(self) -> list[str]:
        return sorted(self.page.evaluate("app.graph._nodes.map(n => n.title)"))


def pixels_of(page_server, outputs) -> list[torch.Tensor]:
    """The videos that a run says it has saved, [1, C, T, H, W], the shortest first."""
    names = [file["filename"] for output in outputs for file in (output or {}).get("images", [])]
    videos = [read_video(next((page_server.base / "output").rglob(n))) for n in names if n.endswith(".mp4")]
    return sorted(videos, key=lambda video: video.shape[2])


def made_by_page(comfy, page_server) -> list[torch.Tensor]:
    return pixels_of(page_server, (event["detail"]["output"] for event in comfy.heard("executed")))


@pytest.mark.parametrize("design", DESIGNS)
def test_from_nothing_to_a_clip_in_four_actions(comfy, page_server, design):
    newcomer = Newcomer(comfy, page_server, design)
    newcomer.find("salt text to video", TEXT_TO_VIDEO, MIDDLE)
    comfy.listen()
    assert newcomer.titles == [TEXT_TO_VIDEO]
    newcomer.press_run()
    comfy.wait_for("execution_success")
    comfy.picture(f"newcomer_{design}")
    assert newcomer.count <= 4
    (video,) = made_by_page(comfy, page_server)
    assert video.shape[2] == 81


@pytest.mark.parametrize("design", DESIGNS)
def test_a_clip_goes_on_by_the_blueprint_as_by_the_workflows_for_scripts(comfy, page_server, design):
    newcomer = Newcomer(comfy, page_server, design)
    newcomer.find("salt text to video", TEXT_TO_VIDEO, LEFT)
    newcomer.put_down(LEFT)
    seed = newcomer.seed(design)
    newcomer.find("salt extend video needs nothing", EXTEND, RIGHT)
    newcomer.put_down(RIGHT)
    assert newcomer.titles == [EXTEND, TEXT_TO_VIDEO]
    newcomer.connect(TEXT_TO_VIDEO, "memory", EXTEND, "memory")
    newcomer.connect(TEXT_TO_VIDEO, "LATENT", EXTEND, "latents")
    comfy.listen()
    newcomer.press_run()
    comfy.wait_for("execution_success")
    comfy.picture(f"blueprint_extend_{design}")
    assert newcomer.count == 11
    first, longer = made_by_page(comfy, page_server)
    assert first.shape[2] == 81 and longer.shape[2] == 129, "5 s, and 3 s more"
    assert (first - longer[:, :, :81]).abs().mean() < 0.02, "the beginning, as another video file holds it"

    kept, extended = twin("save_memory"), twin("extend_from_memory")
    for node in kept.values():
        if "filename_prefix" in node["inputs"]:
            node["inputs"]["filename_prefix"] += f"_{design}"
        if "seconds" in node["inputs"]:
            node["inputs"] |= {"seconds": 5.0, "seed": seed}
    page_server.run(kept)
    for node in extended.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and CLIP_NAME in value:
                node["inputs"][name] = value.replace(CLIP_NAME, f"{CLIP_NAME}_{design}")
        if node["class_type"] == "CLIPTextEncode":
            node["inputs"]["text"] = "a fast purple square moving down"
        if node["class_type"] == "SaltExtendVideo":
            node["inputs"] |= {"seconds": 3.0, "seed": TINY_SEED}
    (by_script,) = pixels_of(page_server, page_server.run(extended).outputs.values())
    # The encoder of videos does not always choose the same, which is less than a frame's shift.
    shifted = (by_script[:, :, 1:] - longer[:, :, :-1]).abs().mean()
    assert (by_script - longer).abs().mean() < shifted / 2


@pytest.mark.parametrize("design", DESIGNS)
def test_a_live_clip_opens_and_shows_frames(comfy, page_server, design):
    newcomer = Newcomer(comfy, page_server, design)
    newcomer.find("salt live video", LIVE, MIDDLE)
    newcomer.put_down(MIDDLE)
    assert newcomer.titles == [LIVE]
    newcomer.seed(design)
    comfy.listen()
    comfy.page.evaluate(WATCH, f"{page_server.url}/salt/live/static/player.js")
    newcomer.press_run()
    assert newcomer.count == 5
    comfy.page.get_by_text(f"see and steer the clip: {LIVE}").wait_for()
    # "Enter Subgraph", which each design has elsewhere
    comfy.page.evaluate("app.canvas.openSubgraph(app.graph._nodes[0].subgraph, app.graph._nodes[0])")
    view = comfy.page.locator(".salt-live-node")
    view.locator(".picture").wait_for()
    comfy.page.wait_for_function(UNTIL, arg=[0, 24], polling=200)
    comfy.picture(f"blueprint_live_{design}")
    assert comfy.page.evaluate("new Set(received.map(picture => picture.pixels)).size") > 10, "it moves"
    on_node = "view => view.offsetWidth <= app.canvas.graph.nodes.find(n => n.type === 'SaltLive').size[0]"
    assert view.evaluate(on_node), "in its place, not over the page"
    view.get_by_role("button", name="Stop and keep").click()
    comfy.wait_for("execution_success")
