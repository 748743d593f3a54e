"""Where nodes, their groups and the note are placed."""

from __future__ import annotations

from .parts import Group
from .sizes import TITLE, note_height

# Pixels on the canvas: between groups, between nodes of a group, between columns, a group's margin and its title.
GAP, NODE_GAP, COLUMN_GAP, MARGIN, GROUP_TITLE = 32, 16, 44, 10, 34

Frame = tuple[int, int, int, int]  # x, y, width, height


def place(groups: list[Group], text: str, note_columns: int) -> tuple[Frame | None, list[Frame]]:
    """Set the position of every node; returns the frames of the note, if there is one, and of the groups.

    text, note_columns: of the note, and how many columns begin below it.
    """
    columns = sorted({group.column for group in groups})
    widths = {
        column: max(node.size[0] for group in groups if group.column == column for node in group.nodes)
        for column in columns
    }
    below, note = 0, None
    if text:
        covered = columns[:note_columns]
        width = sum(widths[column] + 2 * MARGIN for column in covered) + COLUMN_GAP * (len(covered) - 1)
        height = note_height(text, width)
        note, below = (0, TITLE, width, height), TITLE + height + GAP
    frames: dict[int, Frame] = {}
    x = 0
    for index, column in enumerate(columns):
        y = below if index < note_columns else 0
        for group in groups:
            if group.column == column:
                top = y
                y += GROUP_TITLE - NODE_GAP + MARGIN
                for node in group.nodes:
                    y += NODE_GAP + TITLE
                    node.position, node.size = (x + MARGIN, y), (widths[column], node.size[1])
                    y += node.size[1] + node.room
                y += MARGIN
                frames[id(group)] = (x, top, widths[column] + 2 * MARGIN, y - top)
                y += GAP
        x += widths[column] + 2 * MARGIN + COLUMN_GAP
    return note, [frames[id(group)] for group in groups]
