"""Sizes of nodes and notes in pixels, such that both of ComfyUI's front ends draw them without growing them.

Measured in ComfyUI 0.27: the classic canvas, and Nodes 2.0, which draws taller rows, leaves out what is advanced behind
a button, and shows a node's pack below its widgets.
"""

from __future__ import annotations

import re
from typing import Any

from salt.comfy_client.workflow import inputs_of, widgets_of

TITLE = 30  # a node's title bar, above its position
# Rows of the classic canvas: sockets, widgets, the margins of both parts, and a text box.
CANVAS_SOCKET, CANVAS_WIDGET, CANVAS_MARGIN, CANVAS_WIDGET_MARGIN, CANVAS_TEXT = 20, 24, 6, 8, 60
# Rows of Nodes 2.0, its button (advanced widgets, a missing model, the inside of a subgraph), the label of the pack.
VUE_SOCKET, VUE_WIDGET, VUE_MARGIN, VUE_TEXT, VUE_BUTTON, VUE_LABEL = 24, 32, 28, 72, 28, 24
TEXT_ROOM = 60  # more for a text box, to show a few lines
NOTE_CHARACTER, NOTE_LINE, NOTE_PARAGRAPH, NOTE_MARGIN = 6.6, 20.5, 14, 40  # of a note's text


def node_height(definition: dict[str, Any], has_button: bool = False) -> int:
    """The least height of a node of this definition, below its title. has_button: also without advanced widgets."""
    inputs = list(inputs_of(definition))
    widgets = dict(widgets_of(definition))
    rows = max(sum(name not in widgets for name, _, _ in inputs), len(definition["output"]))
    shown = [(name, options) for name, _, options in inputs if name in widgets]
    texts = sum(bool(options.get("multiline")) for _, options in shown)
    advanced = sum(bool(options.get("advanced")) for _, options in shown)
    canvas = rows * CANVAS_SOCKET + CANVAS_MARGIN
    if widgets:
        plain = sum(1 + widgets[name] for name, options in shown if not options.get("multiline"))
        canvas += CANVAS_WIDGET_MARGIN + plain * CANVAS_WIDGET + texts * CANVAS_TEXT
    vue = rows * VUE_SOCKET + VUE_MARGIN + texts * VUE_TEXT + (len(shown) - texts - advanced) * VUE_WIDGET
    vue += VUE_BUTTON * (has_button or bool(advanced)) + VUE_LABEL * ("Salt" in (definition["display_name"] or ""))
    return max(canvas, vue) + texts * TEXT_ROOM


def note_height(text: str, width: int) -> int:
    """The height of a note of this text and width, below its title."""
    columns = int((width - NOTE_MARGIN) / NOTE_CHARACTER)
    lines = paragraphs = 0
    for block in text.split("\n\n"):
        paragraphs += 1
        items = re.sub(r"\n(?!- )", " ", block.strip()).split("\n")  # of a list; one where it is none
        lines += sum(1 + len(item) // columns for item in items)
    return round(NOTE_MARGIN + NOTE_LINE * lines + NOTE_PARAGRAPH * paragraphs)


LEAST_WIDTH = 225  # of a node in Nodes 2.0, which widens narrower ones over the wires beside them
# Widths of nodes that need more or less than others, and heights that a run adds below a node's widgets.
WIDTHS = {
    "SaltLoadTiny": LEAST_WIDTH, "SaltDecode": LEAST_WIDTH, "SaltRollout": 340, "SaltExtendVideo": 340,
    "SaltRolloutToVideo": 340, "SaltPromptSchedule": 435, "CLIPTextEncode": 320, "SaveVideo": 340, "SaltLive": 540,
}  # fmt: skip
DEFAULT_WIDTH = 270
HEIGHTS = {"SaltPromptSchedule": 380}  # with the timeline that the pack's own page adds
ROOMS = {"SaltRollout": 290, "SaltExtendVideo": 290, "SaltRolloutToVideo": 400, "SaltLive": 0, "LoadImage": 26}


def node_width(kind: str) -> int:
    return WIDTHS.get(kind, DEFAULT_WIDTH)


def least_height(kind: str) -> int:
    return HEIGHTS.get(kind, 0)


def node_room(kind: str) -> int:
    return ROOMS.get(kind, 0)
