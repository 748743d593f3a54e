"""Subgraphs: several nodes that appear as one, in a workflow or in the node library (a blueprint)."""

from __future__ import annotations

import uuid
from typing import Any

from .graph import Graph, identity, node_json, obstacles, reroutes_json
from .layout import place
from .parts import Node, Wire
from .sizes import TITLE, node_height

INPUTS, OUTPUTS = -10, -20  # the numbers of a subgraph's own input and output node
EDGE = 160  # pixels between those and the other nodes
SOCKET = 20  # pixels between their sockets
PROMOTED_ROW = 32  # pixels for a widget that a node inside has


class Subgraph(Graph):
    """Builder of the inside of a subgraph. `input` and `promote` before the nodes that use them are connected."""

    first_number = 101  # the page renumbers nodes whose numbers its other graphs have

    def __init__(self, name: str, definitions: dict[str, Any], category: str = "", description: str = "") -> None:
        super().__init__(name, definitions)
        self.category, self.description = category, description
        entries: dict[str, Any] = {"output": [], "output_name": []}
        self.entry = Node(INPUTS, "input", None, entries, {}, {}, (120, 60))
        self.given: dict[str, tuple[str, dict[str, Any]]] = {}
        self.values: dict[str, Any] = {}
        self.results: dict[str, Wire] = {}
        self.promoted: list[tuple[Node, str]] = []

    def input(self, name: str, kind: str, value: Any = None, **options: bool) -> Wire:
        """A socket of the subgraph, or with `value` a widget; options: as in a node's definition."""
        self.entry.definition["output"].append(kind)
        self.entry.definition["output_name"].append(name)
        self.given[name] = (kind, {"forceInput": True} if value is None else dict(options))
        if value is not None:
            self.values[name] = value
        return Wire(self.entry, len(self.given) - 1)

    def promote(self, node: Node, widget: str) -> None:
        """Show a widget of a node on the subgraph as well."""
        self.promoted.append((node, widget))

    def preview(self, node: Node) -> None:
        """Show what a node plays on the subgraph as well."""
        self.promote(node, "$$canvas-image-preview")

    def output(self, name: str, wire: Wire) -> None:
        self.results[name] = wire

    @property
    def id(self) -> str:
        return identity(self.name)

    def node(self, graph: Graph, *, width: int, room: int = 0, height: int = 0, **inputs: Any) -> Node:
        """The node that stands for this subgraph, in `graph`. inputs: Wires, or values of its widgets."""
        definition = {
            "display_name": self.name,
            "input": {"required": {name: [kind, options] for name, (kind, options) in self.given.items()}},
            "output": [wire.node.definition["output"][wire.slot] for wire in self.results.values()],
            "output_name": list(self.results),
        }
        linked = {name: value for name, value in inputs.items() if isinstance(value, Wire)}
        values = self.values | {name: value for name, value in inputs.items() if name not in linked}
        least = node_height(definition, has_button=True) + PROMOTED_ROW * len(self.promoted)
        node = Node(
            len(graph.nodes) + 1, self.id, self.name, definition, linked, values, (width, max(least, height)), room,
            inside=self.json(),
        )  # fmt: skip
        node.properties["proxyWidgets"] = [
            *(["-1", name] for name in self.values),
            *([str(inner.number), widget] for inner, widget in self.promoted),
        ]
        return graph.append(node)

    def json(self) -> dict[str, Any]:
        """The subgraph as `definitions.subgraphs` has it."""
        self._show_values()
        frames = place(self.groups, self.text, self.note_columns)[1]
        links = self.links(obstacles(self.nodes, [], frames))
        extensions = reroutes_json(links)
        parents = {entry["id"]: entry["parentId"] for entry in extensions.get("linkExtensions", [])}
        nodes = [node_json(order, node, links) for order, node in enumerate(self.nodes)]
        listed = [
            {"id": x.number, "origin_id": x.wire.node.number, "origin_slot": x.wire.slot, "target_id": x.target.number,
             "target_slot": x.slot, "type": x.kind,
             **({"parentId": parents[x.number]} if x.number in parents else {})}
            for x in links
        ]  # fmt: skip
        leaving: list[int] = []
        for slot, wire in enumerate(self.results.values()):
            leaving.append(len(listed) + 1)
            kind = wire.node.definition["output"][wire.slot]
            nodes[wire.node.number - self.first_number]["outputs"][wire.slot]["links"].append(leaving[-1])
            listed.append({
                "id": leaving[-1], "origin_id": wire.node.number, "origin_slot": wire.slot, "target_id": OUTPUTS,
                "target_slot": slot, "type": kind,
            })  # fmt: skip
        right = max(node.position[0] + node.size[0] for node in self.nodes)
        inputs = [
            {"id": self._slot_id(f"input {name}"), "name": name, "type": kind,
             "linkIds": [x.number for x in links if x.wire == Wire(self.entry, slot)],
             "pos": [-EDGE + 100, TITLE + SOCKET * (slot + 1)]}
            for slot, (name, (kind, _)) in enumerate(self.given.items())
        ]  # fmt: skip
        outputs = [
            {"id": self._slot_id(f"output {name}"), "name": name, "type": wire.node.definition["output"][wire.slot],
             "linkIds": [leaving[slot]], "pos": [right + EDGE - 100, TITLE + SOCKET * (slot + 1)]}
            for slot, (name, wire) in enumerate(self.results.items())
        ]  # fmt: skip
        return {
            "id": self.id, "version": 1,
            "state": {"lastGroupId": len(self.groups), "lastNodeId": self.first_number + len(nodes) - 1,
                      "lastLinkId": len(listed), "lastRerouteId": len(extensions.get("reroutes", []))},
            "revision": 0, "config": {}, "name": self.name,
            "inputNode": {"id": INPUTS, "bounding": [-EDGE - 20, TITLE, 120, SOCKET * (len(inputs) + 2)]},
            "outputNode": {"id": OUTPUTS, "bounding": [right + EDGE - 100, TITLE, 120, SOCKET * (len(outputs) + 2)]},
            "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": nodes, "groups": [], "links": listed,
            **({"reroutes": reroutes} if (reroutes := extensions.get("reroutes", [])) else {}),
            "extra": {"workflowRendererVersion": "LG"},
            **({"category": self.category} if self.category else {}),
            **({"description": self.description} if self.description else {}),
        }  # fmt: skip

    def _show_values(self) -> None:
        """Widgets that the subgraph shows begin with its values: the page takes them from the node inside."""
        names = list(self.given)
        for node in self.nodes:
            for name, wire in node.linked.items():
                if wire.node is self.entry and name in node.values:
                    node.values[name] = self.values[names[wire.slot]]

    def _slot_id(self, name: str) -> str:
        return str(uuid.uuid5(uuid.UUID(self.id), name))

    def blueprint(self, aliases: list[str]) -> dict[str, Any]:
        """The subgraph as a blueprint of ComfyUI's node library: a workflow of nothing but its node."""
        graph = Graph(f"blueprint {self.name}", self.definitions)
        graph.group("", 0)
        self.node(graph, width=400)
        made = graph.workflow()
        made["extra"] |= {"BlueprintSearchAliases": aliases, "BlueprintDescription": self.description}
        return made | {"groups": []}
