"""Builder of a workflow graph: nodes in groups, groups in columns from left to right, as the JSON of ComfyUI's browser.

The JSON has LiteGraph's format 0.4.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from salt.comfy_client.workflow import inputs_of, widgets_of

# Pixels on the canvas: between groups, of a title bar, of a widget row, and a group's margin.
GAP, TITLE_HEIGHT, ROW_HEIGHT, MARGIN = 40, 34, 26, 20
COLUMN_GAP = 80
BOTTOM_SPACE = 64  # below a node's last widget: Nodes 2.0 draws taller rows, and a badge below them
OPTIONAL_SHAPE = 7  # LiteGraph's hollow circle
NOTE_COLORS = {"color": "#432", "bgcolor": "#653"}
GROUP_COLOR = "#3f789e"


@dataclass(frozen=True)
class Wire:
    """An output of a node in the graph, to be connected to an input of another."""

    node: Node
    slot: int


@dataclass
class Node:
    """A node in the graph. linked, values: inputs by name that are connected, and widget values."""

    number: int
    kind: str
    title: str | None
    definition: dict[str, Any]
    linked: dict[str, Wire]
    values: dict[str, Any]
    size: tuple[int, int]
    models: list[dict[str, str]]
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str | int) -> Wire:
        """An output by name or number. Raises ValueError for one that the node does not have."""
        names = self.definition["output_name"]
        slot = output if isinstance(output, int) else names.index(output)
        if slot >= len(names):
            raise ValueError(f"{self.kind}: found output {slot}, expected below {len(names)}")
        return Wire(self, slot)


@dataclass
class Group:
    """A frame around nodes, in a column of the layout."""

    title: str
    column: int
    nodes: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Note:
    """The Markdown note beside the graph."""

    text: str

    @property
    def size(self) -> tuple[int, int]:
        lines = sum(1 + len(line) // 52 for line in self.text.splitlines())
        return 440, 60 + 22 * lines


class Graph:
    """Builder of one workflow.

    definitions: of the nodes, by type (`load_definitions()`).
    """

    def __init__(self, name: str, definitions: dict[str, Any]) -> None:
        self.name, self.definitions = name, definitions
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self.text = ""

    def note(self, text: str) -> None:
        """Set the Markdown note beside the graph."""
        self.text = text.strip()

    def group(self, title: str, column: int) -> None:
        """Start a group, to which the following nodes belong. Groups of one column are placed below each other."""
        self.groups.append(Group(title, column))

    def add(
        self, kind: str, *, title: str | None = None, size: tuple[int, int] | None = None,
        models: list[dict[str, str]] | None = None, **inputs: Any,
    ) -> Node:  # fmt: skip
        """Add a node. inputs: Wires or widget values by name; other widgets keep their defaults.

        size: (width, height) in pixels, for a node with a preview. Raises ValueError for an unknown node or input, or a
        widget without a value.
        """
        if kind not in self.definitions:
            raise ValueError(f"{self.name}: no definition of node {kind} is saved; a server that has it must be given")
        definition = self.definitions[kind]
        if unknown := sorted(set(inputs) - {name for name, _, _ in inputs_of(definition)}):
            raise ValueError(f"{self.name}: {kind} has no inputs {', '.join(unknown)}")
        wired = {name: value for name, value in inputs.items() if isinstance(value, Wire)}
        options = {name: options for name, _, options in inputs_of(definition)}
        values = {name: inputs.get(name, options[name].get("default")) for name, _ in widgets_of(definition)}
        values |= {name: options[name].get("default") for name in wired if name in values}
        if unset := [name for name, value in values.items() if value is None]:
            raise ValueError(f"{self.name}: {kind} needs a value for {', '.join(unset)}")
        node = Node(
            len(self.nodes) + 1,
            kind,
            title,
            definition,
            wired,
            values,
            size or _node_size(definition, values),
            list(models or []),
        )
        self.nodes.append(node)
        self.groups[-1].nodes.append(node)
        return node

    def place(self) -> list[tuple[float, float, float, float]]:
        """Set the position of every node; returns the frames of the groups as (x, y, width, height)."""
        columns = sorted({group.column for group in self.groups})
        frames: dict[int, tuple[float, float, float, float]] = {}
        x = Note(self.text).size[0] + COLUMN_GAP
        for column in columns:
            y, groups = 0, [g for g in self.groups if g.column == column]
            width = max(node.size[0] for g in groups for node in g.nodes)
            for group in groups:
                top, at = y, y + 2 * MARGIN + TITLE_HEIGHT
                for node in group.nodes:
                    node.position, node.size = (x + MARGIN, at), (width, node.size[1])
                    at += node.size[1] + TITLE_HEIGHT + GAP // 2
                y = at - TITLE_HEIGHT - GAP // 2 + MARGIN
                frames[id(group)] = (x, top, width + 2 * MARGIN, y - top)
                y += GAP
            x += width + 2 * MARGIN + COLUMN_GAP
        return [frames[id(group)] for group in self.groups]

    def workflow(self) -> dict[str, Any]:
        """The workflow as JSON in the browser's format."""
        frames = self.place()
        links: list[list[Any]] = []
        nodes = [self._node_json(order, node, links) for order, node in enumerate(self.nodes)]
        for link, origin, slot, *_ in links:
            nodes[origin - 1]["outputs"][slot]["links"].append(link)
        note = {
            "id": len(nodes) + 1, "type": "MarkdownNote", "title": "What this is", "pos": [0, 0],
            "size": list(Note(self.text).size), "flags": {}, "order": len(nodes), "mode": 0, "inputs": [],
            "outputs": [], "properties": {}, "widgets_values": [self.text], **NOTE_COLORS,
        }  # fmt: skip
        groups = [
            {"id": number, "title": group.title, "bounding": list(frame), "color": GROUP_COLOR, "font_size": 24,
             "flags": {}}
            for number, (group, frame) in enumerate(zip(self.groups, frames, strict=True), 1)
        ]  # fmt: skip
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"salt-video/{self.name}")), "revision": 0,
            "last_node_id": len(nodes) + 1, "last_link_id": len(links), "nodes": [*nodes, note], "links": links,
            "groups": groups, "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [40, 60]}}, "version": 0.4,
        }  # fmt: skip

    def _node_json(self, order: int, node: Node, links: list[list[Any]]) -> dict[str, Any]:
        """A node in the browser's format; appends its incoming links to `links`."""
        widgets = dict(widgets_of(node.definition))
        required = node.definition["input"]["required"]
        sockets, widget_inputs = [], []
        for name, kind, _ in inputs_of(node.definition):
            entry: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if name in widgets:
                widget_inputs.append(entry | {"widget": {"name": name}})
            else:
                sockets.append(entry if name in required else entry | {"shape": OPTIONAL_SHAPE})
        inputs = sockets + widget_inputs
        for slot, entry in enumerate(inputs):
            if wire := node.linked.get(entry["name"]):
                entry["link"] = len(links) + 1
                kind = wire.node.definition["output"][wire.slot]
                links.append([entry["link"], wire.node.number, wire.slot, node.number, slot, kind])
        values = []
        for name, has_extra in widgets.items():
            values.append(node.values[name])
            if has_extra:
                values.append("image" if node.kind == "LoadImage" else "fixed")
        outputs = [
            {"name": name, "type": kind, "slot_index": slot, "links": []}
            for slot, (name, kind) in enumerate(
                zip(node.definition["output_name"], node.definition["output"], strict=True)
            )
        ]
        pack = "salt-video" if node.kind.startswith("Salt") else "comfy-core"
        properties = {"Node name for S&R": node.kind, "cnr_id": pack}
        return {
            "id": node.number, "type": node.kind, "pos": list(node.position), "size": list(node.size), "flags": {},
            "order": order, "mode": 0, "inputs": inputs, "outputs": outputs,
            **({"title": node.title} if node.title else {}),
            "properties": properties | ({"models": node.models} if node.models else {}), "widgets_values": values,
        }  # fmt: skip


def _node_size(definition: dict[str, Any], values: dict[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels for a node's sockets and widgets; multiline text gets more."""
    sockets = sum(1 for name, _, _ in inputs_of(definition) if name not in values)
    options = {name: entry for name, _, entry in inputs_of(definition)}
    tall = sum(120 for name in values if options[name].get("multiline"))
    rows = sum(1 + has_extra for name, has_extra in widgets_of(definition) if not options[name].get("multiline"))
    return (400 if tall else 320), max(
        sockets, len(definition["output"]), 1
    ) * 20 + rows * ROW_HEIGHT + tall + BOTTOM_SPACE
