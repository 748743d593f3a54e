"""Write nodes/web/docs/NODE/LANGUAGE.webp, the picture on every help page: `make node-pictures`.

Each shows the node as ComfyUI draws it after a run: one graph of all nodes, with the embedded model, in each language.
One of them is on the quickstart page as well: docs/images/prompt_schedule.webp.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from .comfy_page import IMAGES, ROOT, comfy_page

PICTURES = ROOT / "nodes" / "web" / "docs"
LANGUAGES = ("en", "zh")
VIEWPORT = {"width": 1500, "height": 1500}
CORNER = (480, 200)  # pixels, where a node's upper left corner is put for its picture
MARGIN = 12  # pixels around a node
FAR = 2000  # pixels between nodes, so that a picture shows one, and no wire but its own
WIDE = ["SaltPlan", "SaltInspectMemory", "SaltSemigroupDefect"]  # nodes that show a table
STUDENT = "models/diffusion_models/salt_cf.pt"  # what Load Salt Student lists; nothing is loaded from it
RUN_MS = 600_000  # limit of a run on a busy machine
LIVE_MS = 6000  # of a live session before its picture

PROMPT = "a fast purple square moving up"
TIMELINE = f"0: {PROMPT}\n1.5 recache: a fast purple square moving right\n3: a slow green circle moving right"
# Kinds of nodes in the order of their runs: {node: {widget: value, or the name and output that it is linked to}}.
GRAPH: dict[str, dict[str, Any]] = {
    "SaltLoadTiny": {},
    "CLIPTextEncode": {"clip": ["SaltLoadTiny", 1], "text": PROMPT},
    "SaltMemoryPolicy": {"model": ["SaltLoadTiny", 0]},
    "SaltPromptSchedule": {"clip": ["SaltLoadTiny", 1], "timeline": TIMELINE},
    "SaltPlan": {"model": ["SaltLoadTiny", 0], "policy": ["SaltMemoryPolicy", 0], "vram": 24},
    "SaltRollout": {
        "model": ["SaltLoadTiny", 0],
        "prompts": ["SaltPromptSchedule", 0],
        "vae": ["SaltLoadTiny", 2],
        "policy": ["SaltMemoryPolicy", 0],
        "seed": 11,
    },
    "SaltDecode": {"latents": ["SaltRollout", 0], "vae": ["SaltLoadTiny", 2]},
    "SaveVideo": {"video": ["SaltDecode", 1]},
    "SaltSaveMemory": {"memory": ["SaltRollout", 1]},
    "SaltInspectMemory": {"memory": ["SaltRollout", 1]},
    "PreviewImage": {"images": ["SaltInspectMemory", 1]},
    "SaltRewindMemory": {"memory": ["SaltRollout", 1], "to": 3},
    "SaltForkMemory": {"memory": ["SaltRewindMemory", 0]},
    "SaltExtendVideo": {
        "model": ["SaltLoadTiny", 0],
        "positive": ["CLIPTextEncode", 0],
        "vae": ["SaltLoadTiny", 2],
        "memory": ["SaltForkMemory", 0],
        "latents": ["SaltRollout", 0],
        "seconds": 3,
        "seed": 11,
    },
    "SaveLatent": {"samples": ["SaltExtendVideo", 0]},
    "SaltRolloutToVideo": {
        "model": ["SaltLoadTiny", 0],
        "positive": ["CLIPTextEncode", 0],
        "vae": ["SaltLoadTiny", 2],
        "seconds": 5,
        "seed": 11,
    },
    "SaltSemigroupDefect": {"model": ["SaltLoadTiny", 0], "positive": ["CLIPTextEncode", 0], "seconds": 1},
    "SaltSigmas": {"model": ["SaltLoadTiny", 0]},
    "SaltSampler": {},
}
# After the run: what reads a file that it wrote, a session that plays until it is ended, a loader of released files.
LATER: dict[str, dict[str, Any]] = {
    "SaltLoadMemory": {"model": ["SaltLoadTiny", 0]},
    "SaltLoadStudent": {},
    "SaltLive": {
        "model": ["SaltLoadTiny", 0],
        "clip": ["SaltLoadTiny", 1],
        "vae": ["SaltLoadTiny", 2],
        "prompt": PROMPT,
        "seconds": 60,
        "seed": 11,
        "nfe": "2",
    },
}

ADD = """([graph, far, wide]) => {
  const node = kind => app.graph._nodes.find(n => n.type === kind);
  for (const kind of Object.keys(graph)) {
    const made = LiteGraph.createNode(kind);
    made.pos = [far * app.graph._nodes.length, far * app.graph._nodes.length];
    app.graph.add(made);
    if (wide.includes(kind)) made.setSize([440, made.size[1]]);
  }
  for (const [kind, inputs] of Object.entries(graph))
    for (const [name, value] of Object.entries(inputs)) {
      const target = node(kind);
      if (Array.isArray(value)) node(value[0]).connect(value[1], target, target.inputs.findIndex(i => i.name === name));
      else { const w = target.widgets.find(w => w.name === name); w.value = value; w.callback?.(value); }
      const after = target.widgets?.find(w => w.name === 'control_after_generate');
      if (after) after.value = 'fixed';
    }
}"""
REMOVE = "test => app.graph._nodes.filter(eval(test)).forEach(node => app.graph.remove(node))"
SHOW = """([kind, x, y]) => {
  const node = app.graph._nodes.find(n => n.type === kind), { ds } = app.canvas;
  ds.scale = 1; ds.offset = [x - node.pos[0], y - node.pos[1]];
  app.canvas.setDirty(true, true);
  return node.id;
}"""


def picture(comfy: Any, kind: str) -> Image.Image:
    """The node cut to its edges."""
    number = comfy.page.evaluate(SHOW, [kind, *CORNER])
    node = comfy.page.locator(f"[data-node-id='{number}']").first
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


def run(comfy: Any, event: str) -> None:
    """Press Run, and wait for this event of the server."""
    comfy.listen()
    comfy.page.evaluate("app.extensionManager.command.execute('Comfy.QueuePrompt')")  # the button's name is translated
    comfy.page.wait_for_function("name => heard.some(e => e.name === name)", arg=event, timeout=RUN_MS)
    comfy.page.wait_for_timeout(1500)


def pictures(comfy: Any) -> dict[str, Image.Image]:
    """A picture of every node, by its id."""
    comfy.page.evaluate("app.graph.clear()")
    comfy.page.evaluate(ADD, [GRAPH, FAR, WIDE])
    run(comfy, "execution_success")
    found = {kind: picture(comfy, kind) for kind in GRAPH if kind.startswith("Salt")}
    comfy.page.evaluate(REMOVE, "node => node.type !== 'SaltLoadTiny'")
    comfy.page.evaluate("app.refreshComboInNodes()")
    comfy.page.evaluate(ADD, [LATER, FAR, WIDE])
    comfy.page.wait_for_timeout(1500)
    found |= {kind: picture(comfy, kind) for kind in LATER if kind != "SaltLive"}
    comfy.page.evaluate(REMOVE, "node => node.type === 'SaltLoadStudent'")
    run(comfy, "execution_start")
    comfy.page.wait_for_timeout(LIVE_MS)
    found["SaltLive"] = picture(comfy, "SaltLive")
    comfy.page.evaluate("app.api.interrupt()")
    return found


def main() -> None:
    for language in LANGUAGES:
        with comfy_page(STUDENT) as comfy:  # a server for each, as it would not repeat a run
            comfy.page.set_viewport_size(VIEWPORT)
            comfy.setting("Comfy.Locale", language)
            comfy.open()
            found = pictures(comfy)
        assert set(found) == {page.stem for page in PICTURES.glob("*.md")}
        for kind, image in found.items():
            path = PICTURES / kind / f"{language}.webp"
            image.save(path, quality=80, method=6)
            print(path.relative_to(ROOT), image.size)
        if language == "en":
            found["SaltPromptSchedule"].save(IMAGES / "prompt_schedule.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
