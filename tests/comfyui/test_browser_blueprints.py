"""Blueprints placed from the node library by mouse, connected, and run, as a person without a workflow does."""

from __future__ import annotations

import pytest
import torch

from salt.io.video import read_video
from tests.helpers.comfyui_server import NEWER_PAGE

DESIGNS = {"canvas": False, "vue": True}  # ComfyUI's two ways to draw a node
TEXT_TO_VIDEO, EXTEND = "Salt text to video (needs nothing)", "Salt extend video (needs nothing)"
LEFT, MIDDLE, RIGHT = (260, 300), (800, 450), (1100, 300)  # places on the page

# Where a socket of a node is on the page.
SOCKET = """([title, side, name]) => {
  const node = app.graph._nodes.find(n => n.title === title), { ds, canvas } = app.canvas;
  const slot = node[side].findIndex(s => s.name === name), { left, top } = canvas.getBoundingClientRect();
  const [x, y] = side === 'inputs' ? node.getInputPos(slot) : node.getOutputPos(slot);
  return [(x + ds.offset[0]) * ds.scale + left, (y + ds.offset[1]) * ds.scale + top];
}"""
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
        self.page.mouse.dblclick(*place)
        self.page.wait_for_function("document.activeElement.matches('input')")
        self.page.keyboard.type(words)
        self.page.get_by_text(title).last.wait_for()
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("present => app.graph._nodes.length > present", arg=present)
        self.comfy.drawn()

    def put_down(self, place: tuple[int, int]) -> None:
        self.count += 1
        self.page.mouse.click(*place)
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
def test_two_blueprints_connected_by_mouse_make_a_longer_clip(comfy, page_server, design):
    newcomer = Newcomer(comfy, page_server, design)
    newcomer.find("salt text to video", TEXT_TO_VIDEO, LEFT)
    newcomer.put_down(LEFT)
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
