"""Write docs/images/nodes/NODE.webp, a picture of every node in ComfyUI: `make node-pictures`."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from .comfy_page import IMAGES, comfy_page
from .hooks import node_schemas

PICTURES = IMAGES / "nodes"
VIEWPORT = {"width": 1400, "height": 1400}
MARGIN = 12  # pixels around a node

ADD_ONLY = """kind => {
  app.graph.clear();
  const node = LiteGraph.createNode(kind);
  node.pos = [0, 0];
  app.graph.add(node);
  app.canvas.ds.scale = 1; app.canvas.ds.offset = [460, 190];
  app.canvas.setDirty(true, true);
}"""


def picture(comfy: Any, kind: str) -> Image.Image:
    """The node alone in the graph, cut to its edges."""
    comfy.page.evaluate(ADD_ONLY, kind)
    node = comfy.page.locator("[data-node-id]").first
    node.wait_for(timeout=20_000)
    comfy.page.wait_for_timeout(700)  # nodes grow when they are first drawn
    box = node.bounding_box()
    region = {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN,
        "height": box["height"] + 2 * MARGIN,
    }
    return Image.open(io.BytesIO(comfy.page.screenshot(clip=region))).convert("RGB")


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with comfy_page() as comfy:
        comfy.page.set_viewport_size(VIEWPORT)
        for node in node_schemas():
            image = picture(comfy, node["id"])
            image.save(PICTURES / f"{node['id']}.webp", quality=80, method=6)
            print(node["id"], image.size)


if __name__ == "__main__":
    main()
