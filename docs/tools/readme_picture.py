"""The README's moving picture, docs/images/salt.webp, and docs/images/workflow.webp: `make readme-picture`.

Both come from real runs of the workflow `tiny_text_to_video` in ComfyUI. workflow.webp: the template as it opens, after
the run. salt.webp, left: four clips of the embedded model at 4 evaluations per block, made on the CPU; right: the
workflow's nodes, from the press of Run to the saved video, with the preview in Salt Rollout.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .comfy_page import IMAGES, comfy_page, require_host

PROMPTS = (
    "a fast yellow square moving left",
    "a slow blue circle moving down",
    "a fast red triangle moving up",
    "a slow green square moving right",
)
FRAMES = 81
FRAME_MS = 125  # of the animation; a clip has 16 frames per second, so every second frame is shown
BEFORE, RUNNING, AFTER = 6, 52, 22  # animation frames; together two loops of the clips
SIZE_LIMIT = 2_000_000  # bytes

CLIP, GAP, CAPTION = 124, 9, 16  # pixels
BACKGROUND, TEXT = (20, 20, 20), (222, 222, 222)

# The workflow's nodes in three columns instead of one row: [x, y, width, height] by node id.
PLACES = {
    1: [0, 0, 290, 110],
    2: [0, 170, 290, 190],
    3: [345, 0, 350, 600],
    4: [750, 0, 310, 110],
    5: [750, 170, 310, 480],
}
SEED = 12  # not the template's own, whose run ComfyUI would not repeat
RUN_MS = 600_000  # limit of a run on a busy machine
VIEWPORT = {"width": 1400, "height": 1000}
SCALE, LEFT, TOP = 0.74, 90, 190  # of the graph in the page; the page's own bars are above and to the right
REGION = {"x": 78, "y": 150, "width": 812, "height": 604}

ARRANGE = """([places, scale, left, top]) => {
  for (const note of app.graph._nodes.filter(n => !places[n.id])) app.graph.remove(note);
  for (const id of [...app.graph.reroutes.keys()]) app.graph.removeReroute(id);
  for (const group of [...app.graph._groups]) app.graph.remove(group);
  for (const node of app.graph._nodes) {
    const [x, y, w, h] = places[node.id];
    node.pos = [x, y]; node.setSize([w, h]);
  }
  app.canvas.ds.scale = scale; app.canvas.ds.offset = [left / scale, top / scale];
  app.canvas.setDirty(true, true);
}"""
# Where the nodes and groups of the graph lie in the page: [left, top, right, bottom].
BOUNDS = """() => {
  const { scale, offset } = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
  const { _nodes: nodes, _groups: groups } = app.graph;
  const boxes = [...nodes.map(n => [...n.getBounding()]), ...groups.map(g => [...g.boundingRect])];
  const page = (value, axis) => (value + offset[axis]) * scale + (axis ? canvas.top : canvas.left);
  return [0, 1, 2, 3].map(i => i < 2 ? page(Math.min(...boxes.map(b => b[i])), i)
    : page(Math.max(...boxes.map(b => b[i - 2] + b[i])), i - 2));
}"""
OPENED = {"width": 1600, "height": 900}  # the window that a template opens in
EDGE = 12  # pixels around the template
PLAY = "() => { const v = document.querySelector('video'); if (v) { v.muted = true; v.loop = true; v.play() } }"


def embedded_clips() -> list[list[Image.Image]]:
    """The frames of one clip per prompt, 64x64."""
    from salt import SaltPipeline

    pipe = SaltPipeline.from_pretrained("salt-tiny")
    clips = []
    for prompt in PROMPTS:
        frames = [f for chunk in pipe.stream(prompt, num_frames=FRAMES, seed=0) for f in chunk.frames[0]]
        clips.append([Image.fromarray(frame.numpy()) for frame in frames])
    return clips


def clip_column(clips: list[list[Image.Image]], index: int, height: int) -> Image.Image:
    """The clips' frames at one moment of the animation, one above the other, each with its prompt."""
    column = Image.new("RGB", (CLIP + 2 * GAP, height), BACKGROUND)
    draw, font = ImageDraw.Draw(column), ImageFont.load_default(9)
    pitch = (height - GAP) // len(clips)
    for row, (prompt, frames) in enumerate(zip(PROMPTS, clips, strict=True)):
        x, y = GAP, GAP + row * pitch
        frame = frames[index * 2 % (len(frames) - 1)]
        column.paste(frame.resize((CLIP, CLIP), Image.Resampling.BICUBIC), (x, y))
        draw.text((x + CLIP / 2, y + CLIP + CAPTION / 2 - 1), prompt.removeprefix("a "), TEXT, font, anchor="mm")
    return column


def screenshot(comfy: Any, region: Mapping[str, float] = REGION) -> Image.Image:
    return Image.open(io.BytesIO(comfy.page.screenshot(clip=region))).convert("RGB")


def opened_template(comfy: Any) -> Image.Image:
    """The template as the template browser opens it, after its run."""
    from tests.helpers.comfyui_server import template
    from tests.helpers.template_view import open_template

    comfy.page.set_viewport_size(OPENED)
    open_template(comfy.page, json.loads(template("tiny_text_to_video").read_text()), "tiny_text_to_video")
    comfy.listen()
    comfy.press_run()
    comfy.page.wait_for_function("heard.some(e => e.name === 'execution_success')", timeout=RUN_MS)
    comfy.page.locator("video").first.wait_for(timeout=20_000)
    comfy.page.wait_for_timeout(6000)  # until the notice of the finished job has gone
    left, top, right, bottom = comfy.page.evaluate(BOUNDS)
    region = {"x": left - EDGE, "y": top - EDGE, "width": right - left + 2 * EDGE, "height": bottom - top + 2 * EDGE}
    return screenshot(comfy, region)


def record_run(comfy: Any) -> list[Image.Image]:
    """Screenshots of the graph at the animation's pace: before, during and after a run of the tiny workflow."""
    from tests.helpers.comfyui_server import template

    comfy.page.set_viewport_size(VIEWPORT)
    comfy.drop(template("tiny_text_to_video"))
    comfy.page.evaluate(ARRANGE, [PLACES, SCALE, LEFT, TOP])
    comfy.set_widget("SaltRollout", "seed", SEED)
    comfy.page.wait_for_timeout(1500)
    before = screenshot(comfy)
    comfy.listen()
    comfy.press_run()
    shots = timed_screenshots(comfy, lambda: bool(comfy.heard("execution_success")), RUN_MS / 1000)
    comfy.page.locator("video").first.wait_for(timeout=20_000)
    comfy.page.evaluate(PLAY)
    after = timed_screenshots(comfy, lambda: False, AFTER * FRAME_MS / 1000)
    return [before] * BEFORE + evenly(shots, RUNNING) + evenly(after, AFTER)


def timed_screenshots(comfy: Any, finished: Any, limit: float) -> list[tuple[float, Image.Image]]:
    """(seconds, picture) as fast as the page gives them, until `finished()` or `limit` seconds are over."""
    shots, began = [], time.monotonic()
    while time.monotonic() - began < limit and not finished():
        shots.append((time.monotonic() - began, screenshot(comfy)))
    return shots


def evenly(shots: list[tuple[float, Image.Image]], count: int) -> list[Image.Image]:
    """`count` pictures at equal distances in time; of each moment the newest picture there was."""
    first, last = shots[0][0], shots[-1][0]
    moments = [first + (last - first) * i / max(count - 1, 1) for i in range(count)]
    return [[image for seconds, image in shots if seconds <= moment + 1e-6][-1] for moment in moments]


def compose(clips: list[list[Image.Image]], graph: list[Image.Image]) -> list[Image.Image]:
    frames = []
    for index, picture in enumerate(graph):
        column = clip_column(clips, index, picture.height)
        frame = Image.new("RGB", (column.width + picture.width, picture.height), BACKGROUND)
        frame.paste(column, (0, 0))
        frame.paste(picture, (column.width, 0))
        frames.append(frame)
    return frames


def save(frames: list[Image.Image]) -> int:
    """Write the animation at the best quality that stays below the limit; returns its size in bytes."""
    target = IMAGES / "salt.webp"
    for quality in (80, 70, 60, 45, 30):
        frames[0].save(target, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, quality=quality,
                       method=4, minimize_size=False)  # fmt: skip
        if (size := target.stat().st_size) < SIZE_LIMIT:
            return size
    sys.exit(f"{target} has {size} bytes at the lowest quality, expected less than {SIZE_LIMIT}")


def main() -> None:
    require_host()
    clips = embedded_clips()
    with comfy_page() as comfy:
        opened_template(comfy).save(IMAGES / "workflow.webp", quality=85, method=6)
        graph = record_run(comfy)
    frames = compose(clips, graph)
    size = save(frames)
    print(f"docs/images/salt.webp: {len(frames)} frames, {frames[0].width}x{frames[0].height}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
