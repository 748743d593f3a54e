"""Salt Live on its node in ComfyUI's page: steered, and stopped and kept."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.helpers.comfyui_page import ComfyPage, chromium
from tests.helpers.comfyui_server import ROOT, LocalServer

GRAPH = """() => {
  app.graph.clear();
  const [tiny, live] = ['SaltLoadTiny', 'SaltLive'].map(kind => LiteGraph.createNode(kind));
  tiny.pos = [50, 100]; live.pos = [400, 100];
  for (const node of [tiny, live]) app.graph.add(node);
  for (const slot of [0, 1, 2]) tiny.connect(slot, live, slot);
  const values = {prompt: 'a fast red circle moving right', width: 64, height: 64, nfe: '2'};
  for (const [name, value] of Object.entries(values)) live.widgets.find(w => w.name === name).value = value;
}"""


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (base / name).mkdir()
    (base / "custom_nodes" / "ComfyUI-Salt").symlink_to(ROOT, target_is_directory=True)
    server = LocalServer(base)
    try:
        with chromium() as browser:
            page = ComfyPage(browser, server.url)
            page.base = base
            yield page
    finally:
        server.stop()
        shutil.rmtree(base, ignore_errors=True)


def motion(path) -> list[str]:
    """Where the red object goes, from one second to the next: the larger part of its way."""
    import imageio.v3 as iio

    places = []
    for frame in iio.imread(path)[::8]:
        red = np.clip(frame[..., 0].astype(float) - frame[..., 1:].max(axis=2), 0, None)
        angles = [2 * np.pi * np.arange(64) / 64] * 2
        places.append(
            [np.angle((red.sum(axis) * np.exp(1j * a)).sum()) for axis, a in zip((1, 0), angles, strict=True)]
        )
    steps = (np.diff(np.array(places), axis=0) + np.pi) % (2 * np.pi) - np.pi  # the world is a torus
    return ["down" if abs(y) > abs(x) and y > 0 else "up" if abs(y) > abs(x) else "right" if x > 0 else "left"
            for y, x in steps]  # fmt: skip


@pytest.mark.parametrize("vue", [False])
def test_a_clip_is_steered_on_its_node(comfy, vue):
    page = comfy.page
    comfy.setting("Comfy.VueNodes.Enabled", vue)
    page.evaluate(GRAPH)
    comfy.look_at("SaltLive")
    comfy.listen()
    comfy.press_run()
    view = page.locator(".salt-live-node")
    view.locator("canvas").first.wait_for(timeout=60_000)
    page.wait_for_timeout(3000)
    view.locator("textarea").first.fill("a fast red circle moving up")
    view.get_by_role("button", name="Send").click()
    page.wait_for_timeout(5000)
    view.get_by_role("button", name="Stop and keep").click()
    comfy.wait_for("execution_success")
    view.wait_for(state="detached")
    assert comfy.errors == []
    recorded = max(comfy.base.rglob("*.mp4"), key=lambda path: path.stat().st_mtime)
    ways = motion(recorded)
    assert ways[1] == "right" and ways[-2:] == ["up", "up"], ways
