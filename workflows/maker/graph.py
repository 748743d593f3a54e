"""The drawing board: nodes are put down in groups, groups in columns from left to right, and it comes out as the JSON
that ComfyUI's browser saves (format 0.4)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from salt.comfy_client.workflow import inputs_of, widgets_of

GAP, HEAD, ROW, EDGE = 40, 34, 26, 20  # pixels on the canvas: between things, a title bar, a widget, a group's margin
COLUMN_GAP = 80
FOOT = 64  # below a node's last widget: Nodes 2.0 draws taller rows, and a badge beneath them
OPTIONAL_SHAPE = 7  # LiteGraph's hollow circle
NOTE_COLORS = {"color": "#432", "bgcolor": "#653"}
GROUP_COLOR = "#3f789e"


@dataclass(frozen=True)
class Wire:
    """An output of a node that was put down, to be an input of another."""

    node: Node
    slot: int


@dataclass
class Node:
    number: int
    kind: str
    title: str | None
    about: dict[str, Any]
    linked: dict[str, Wire]
    values: dict[str, Any]
    size: tuple[int, int]
    models: list[dict[str, str]]
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str | int) -> Wire:
        """An output by its name or number. Raises ValueError for one that the node does not have."""
        names = self.about["output_name"]
        slot = output if isinstance(output, int) else names.index(output)
        if slot >= len(names):
            raise ValueError(f"{self.kind}: found output {slot}, expected below {len(names)}")
        return Wire(self, slot)


@dataclass
class Group:
    title: str
    column: int
    nodes: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Note:
    """Words beside the graph, in Markdown."""

    text: str

    @property
    def size(self) -> tuple[int, int]:
        lines = sum(1 + len(line) // 52 for line in self.text.splitlines())
        return 440, 60 + 22 * lines


class Graph:
    """One workflow in the making.

    info: what a server says of its nodes (`about.kept()`).
    """

    def __init__(self, name: str, info: dict[str, Any]) -> None:
        self.name, self.info = name, info
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self.text = ""

    def note(self, text: str) -> None:
        self.text = text.strip()

    def group(self, title: str, column: int) -> None:
        """The frame that nodes are put into from here on. Frames of one column stand below one another."""
        self.groups.append(Group(title, column))

    def add(
        self, kind: str, *, title: str | None = None, size: tuple[int, int] | None = None,
        models: list[dict[str, str]] | None = None, **inputs: Any,
    ) -> Node:  # fmt: skip
        """Put a node down; inputs are Wires or widget values by name, other widgets keep their defaults.

        size: pixels, for a node with something to show. Raises ValueError for an input that the node does not have.
        """
        if kind not in self.info:
            raise ValueError(f"{self.name}: found no node {kind} among those known, expected a server that has it")
        about = self.info[kind]
        if unknown := sorted(set(inputs) - {name for name, _, _ in inputs_of(about)}):
            raise ValueError(f"{self.name}, {kind}: found inputs {', '.join(unknown)} that it does not have")
        wired = {name: value for name, value in inputs.items() if isinstance(value, Wire)}
        options = {name: options for name, _, options in inputs_of(about)}
        values = {name: inputs.get(name, options[name].get("default")) for name, _ in widgets_of(about)}
        values |= {name: options[name].get("default") for name in wired if name in values}
        if unset := [name for name, value in values.items() if value is None]:
            raise ValueError(f"{self.name}, {kind}: found no value for {', '.join(unset)}, expected one")
        node = Node(
            len(self.nodes) + 1, kind, title, about, wired, values, size or _size(about, values), list(models or [])
        )
        self.nodes.append(node)
        self.groups[-1].nodes.append(node)
        return node

    def place(self) -> list[tuple[float, float, float, float]]:
        """Give every node its place; the frames of the groups as (x, y, width, height)."""
        columns = sorted({group.column for group in self.groups})
        frames: dict[int, tuple[float, float, float, float]] = {}
        x = Note(self.text).size[0] + COLUMN_GAP
        for column in columns:
            y, groups = 0, [g for g in self.groups if g.column == column]
            width = max(node.size[0] for g in groups for node in g.nodes)
            for group in groups:
                top, at = y, y + 2 * EDGE + HEAD
                for node in group.nodes:
                    node.position, node.size = (x + EDGE, at), (width, node.size[1])
                    at += node.size[1] + HEAD + GAP // 2
                y = at - HEAD - GAP // 2 + EDGE
                frames[id(group)] = (x, top, width + 2 * EDGE, y - top)
                y += GAP
            x += width + 2 * EDGE + COLUMN_GAP
        return [frames[id(group)] for group in self.groups]

    def workflow(self) -> dict[str, Any]:
        """The browser's JSON."""
        frames = self.place()
        links: list[list[Any]] = []
        drawn = [self._drawn(order, node, links) for order, node in enumerate(self.nodes)]
        for link, origin, slot, *_ in links:
            drawn[origin - 1]["outputs"][slot]["links"].append(link)
        note = {
            "id": len(drawn) + 1, "type": "MarkdownNote", "title": "What this is", "pos": [0, 0],
            "size": list(Note(self.text).size), "flags": {}, "order": len(drawn), "mode": 0, "inputs": [],
            "outputs": [], "properties": {}, "widgets_values": [self.text], **NOTE_COLORS,
        }  # fmt: skip
        groups = [
            {"id": number, "title": group.title, "bounding": list(frame), "color": GROUP_COLOR, "font_size": 24,
             "flags": {}}
            for number, (group, frame) in enumerate(zip(self.groups, frames, strict=True), 1)
        ]  # fmt: skip
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"salt-video/{self.name}")), "revision": 0,
            "last_node_id": len(drawn) + 1, "last_link_id": len(links), "nodes": [*drawn, note], "links": links,
            "groups": groups, "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [40, 60]}}, "version": 0.4,
        }  # fmt: skip

    def _drawn(self, order: int, node: Node, links: list[list[Any]]) -> dict[str, Any]:
        widgets = dict(widgets_of(node.about))
        required = node.about["input"]["required"]
        sockets, faces = [], []
        for name, kind, _ in inputs_of(node.about):
            entry: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if name in widgets:
                faces.append(entry | {"widget": {"name": name}})
            else:
                sockets.append(entry if name in required else entry | {"shape": OPTIONAL_SHAPE})
        inputs = sockets + faces
        for slot, entry in enumerate(inputs):
            if wire := node.linked.get(entry["name"]):
                entry["link"] = len(links) + 1
                kind = wire.node.about["output"][wire.slot]
                links.append([entry["link"], wire.node.number, wire.slot, node.number, slot, kind])
        values = []
        for name, followed in widgets.items():
            values.append(node.values[name])
            if followed:
                values.append("image" if node.kind == "LoadImage" else "fixed")
        outputs = [
            {"name": name, "type": kind, "slot_index": slot, "links": []}
            for slot, (name, kind) in enumerate(zip(node.about["output_name"], node.about["output"], strict=True))
        ]
        pack = "salt-video" if node.kind.startswith("Salt") else "comfy-core"
        properties = {"Node name for S&R": node.kind, "cnr_id": pack}
        return {
            "id": node.number, "type": node.kind, "pos": list(node.position), "size": list(node.size), "flags": {},
            "order": order, "mode": 0, "inputs": inputs, "outputs": outputs,
            **({"title": node.title} if node.title else {}),
            "properties": properties | ({"models": node.models} if node.models else {}), "widgets_values": values,
        }  # fmt: skip


def _size(about: dict[str, Any], values: dict[str, Any]) -> tuple[int, int]:
    """Room for a node's sockets and widgets; text that wraps gets more."""
    sockets = sum(1 for name, _, _ in inputs_of(about) if name not in values)
    options = {name: told for name, _, told in inputs_of(about)}
    tall = sum(120 for name in values if options[name].get("multiline"))
    rows = sum(1 + followed for name, followed in widgets_of(about) if not options[name].get("multiline"))
    return (400 if tall else 320), max(sockets, len(about["output"]), 1) * 20 + rows * ROW + tall + FOOT
