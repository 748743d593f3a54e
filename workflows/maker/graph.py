"""Builder of a workflow graph: nodes in groups, groups in columns from left to right, as the JSON of ComfyUI's browser.

The JSON has LiteGraph's format 0.4.
"""

from __future__ import annotations

import uuid
from typing import Any

from salt.comfy_client.workflow import inputs_of, widgets_of

from .layout import GROUP_TITLE, Frame, place
from .parts import Group, Link, Node, Wire
from .sizes import LEAST_WIDTH, TITLE, least_height, node_height, node_room, node_width
from .wires import Box, Point, route

NOTE_COLORS = {"color": "#223", "bgcolor": "#2a2d3a"}
GROUP_COLOR = "#8ab4d6"
ROW = 22  # pixels between sockets, halfway between both front ends
FIRST_ROW = 14  # pixels from a node's position to its first socket


class Graph:
    """Builder of one workflow.

    definitions: of the nodes, by type (`load_definitions()`).
    """

    first_number = 1  # of its nodes

    def __init__(self, name: str, definitions: dict[str, Any]) -> None:
        self.name, self.definitions = name, definitions
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self.text, self.note_columns = "", 2

    def note(self, text: str, columns: int = 2) -> None:
        """Set the Markdown note above the first columns."""
        self.text, self.note_columns = text.strip(), columns

    def group(self, title: str, column: int) -> None:
        """Start a group, to which the following nodes belong. Groups of one column are placed below each other."""
        self.groups.append(Group(title, column))

    def add(
        self, kind: str, /, *, title: str | None = None, size: tuple[int, int] = (0, 0), room: int | None = None,
        models: list[dict[str, str]] | None = None, **inputs: Any,
    ) -> Node:  # fmt: skip
        """Add a node. inputs: Wires or widget values by name; other widgets keep their defaults.

        size: width and least height in pixels, 0 for those of the node's kind; room: see Node, without it the kind's.
        Raises ValueError for an unknown node or input, or a widget without a value.
        """
        if kind not in self.definitions:
            raise ValueError(f"{self.name}: no definition of node {kind} is saved; a server that has it must be given")
        definition = self.definitions[kind]
        if unknown := sorted(set(inputs) - {name for name, _, _ in inputs_of(definition)}):
            raise ValueError(f"{self.name}: {kind} has no inputs {', '.join(unknown)}")
        wired = {name: value for name, value in inputs.items() if isinstance(value, Wire)}
        options = {name: options for name, _, options in inputs_of(definition)}
        values = {name: inputs.get(name, options[name].get("default")) for name, _ in widgets_of(definition)}
        values |= {name: options[name].get("default", "") for name in wired if name in values}
        if unset := [name for name, value in values.items() if value is None]:
            raise ValueError(f"{self.name}: {kind} needs a value for {', '.join(unset)}")
        width = max(size[0] or node_width(kind), LEAST_WIDTH)
        actual = (width, max(size[1], least_height(kind), node_height(definition, bool(models))))
        kept = node_room(kind) if room is None else room
        node = Node(
            self.first_number + len(self.nodes),
            kind,
            title,
            definition,
            wired,
            values,
            actual,
            kept,
            list(models or []),
        )
        return self.append(node)

    def append(self, node: Node) -> Node:
        """Add a node to the group that was started last."""
        self.nodes.append(node)
        self.groups[-1].nodes.append(node)
        return node

    def links(self, boxes: list[Box]) -> list[Link]:
        """All connections, in the order of their targets, with their ways around the boxes."""
        found = list[Link]()
        rows: list[tuple[Point, Point]] = []
        for node in self.nodes:
            for slot, entry in enumerate(node.slots):
                if wire := node.linked.get(entry["name"]):
                    origin, width = wire.node.position, wire.node.size[0]
                    start = (origin[0] + width, origin[1] + FIRST_ROW + ROW * wire.slot)
                    end = (node.position[0], node.position[1] + FIRST_ROW + ROW * slot)
                    points = [] if wire.node.number < 0 else route(start, end, boxes, rows)
                    rows += [row for row in zip(points, points[1:], strict=False) if row[0][1] == row[1][1]]
                    kind = wire.node.definition["output"][wire.slot]
                    found.append(Link(len(found) + 1, wire, node, slot, kind, points))
        return found

    def workflow(self) -> dict[str, Any]:
        """The workflow as JSON in the browser's format."""
        note, frames = place(self.groups, self.text, self.note_columns)
        links = self.links(obstacles(self.nodes, [note] if note else [], frames))
        nodes = [node_json(order, node, links) for order, node in enumerate(self.nodes)]
        notes = [self._note_json(note)] if note else []
        subgraphs = [node.inside for node in self.nodes if node.inside]
        return {
            "id": identity(self.name), "revision": 0, "last_node_id": len(nodes) + len(notes),
            "last_link_id": len(links), "nodes": [*nodes, *notes],
            "links": [[x.number, x.wire.node.number, x.wire.slot, x.target.number, x.slot, x.kind] for x in links],
            "groups": self._groups_json(frames), **({"definitions": {"subgraphs": subgraphs}} if subgraphs else {}),
            "config": {}, "extra": {"ds": {"scale": 0.6, "offset": [80, 80]}, **reroutes_json(links)}, "version": 0.4,
        }  # fmt: skip

    def _groups_json(self, frames: list[Frame]) -> list[dict[str, Any]]:
        return [
            {"id": number, "title": group.title, "bounding": list(frame), "color": GROUP_COLOR, "font_size": 24,
             "flags": {}}
            for number, (group, frame) in enumerate(zip(self.groups, frames, strict=True), 1)
        ]  # fmt: skip

    def _note_json(self, frame: Frame) -> dict[str, Any]:
        x, y, width, height = frame
        return {
            "id": len(self.nodes) + 1, "type": "MarkdownNote", "title": "What this is", "pos": [x, y],
            "size": [width, height], "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [],
            "properties": {}, "widgets_values": [self.text], **NOTE_COLORS,
        }  # fmt: skip


def obstacles(nodes: list[Node], notes: list[Frame], frames: list[Frame]) -> list[Box]:
    """What a wire should not cross: nodes, notes, and the titles of groups."""
    return [
        *(node.box for node in nodes),
        *(Box(x, y - TITLE, x + width, y + height) for x, y, width, height in notes),
        *(Box(x, y, x + width, y + GROUP_TITLE) for x, y, width, _ in frames),
    ]


def identity(name: str) -> str:
    """The id of a graph, the same on every machine."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"salt-video/{name}"))


def reroutes_json(links: list[Link]) -> dict[str, Any]:
    """The reroute points of all links, as `extra` has them."""
    reroutes: list[dict[str, Any]] = []
    last: list[dict[str, int]] = []
    for link in links:
        for i, point in enumerate(link.points):
            parent = {"parentId": len(reroutes)} if i else {}
            reroutes.append({"id": len(reroutes) + 1, **parent, "pos": list(point), "linkIds": [link.number]})
        if link.points:
            last.append({"id": link.number, "parentId": len(reroutes)})
    return {"linkExtensions": last, "reroutes": reroutes} if reroutes else {}


def node_json(order: int, node: Node, links: list[Link]) -> dict[str, Any]:
    """A node in the browser's format."""
    inputs = node.slots
    for link in links:
        if link.target is node:
            inputs[link.slot]["link"] = link.number
    values = []
    for name, has_extra in widgets_of(node.definition):
        values.append(node.values[name])
        if has_extra:
            values.append("image" if node.kind in ("LoadImage", "LoadVideo") else "fixed")
    outputs = [
        {"name": name, "type": kind, "slot_index": slot,
         "links": [link.number for link in links if link.wire == Wire(node, slot)]}
        for slot, (name, kind) in enumerate(zip(node.definition["output_name"], node.definition["output"], strict=True))
    ]  # fmt: skip
    pack = "salt-video" if node.kind.startswith("Salt") or node.inside else "comfy-core"
    properties = {"Node name for S&R": node.kind, "cnr_id": pack, **node.properties}
    return {
        "id": node.number, "type": node.kind, "pos": list(node.position), "size": list(node.size), "flags": {},
        "order": order, "mode": 0, "inputs": inputs, "outputs": outputs,
        **({"title": node.title} if node.title else {}),
        "properties": properties | ({"models": node.models} if node.models else {}), "widgets_values": values,
    }  # fmt: skip
