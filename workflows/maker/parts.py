"""The parts of a workflow graph: nodes, groups, links."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from salt.comfy_client.workflow import inputs_of, widgets_of

from .sizes import TITLE
from .wires import Box, Point

OPTIONAL_SHAPE = 7  # LiteGraph's hollow circle


@dataclass(frozen=True)
class Wire:
    """An output of a node in the graph, to be connected to an input of another."""

    node: Node
    slot: int


@dataclass
class Node:
    """A node in the graph. linked, values: inputs by name that are connected, and widget values. size: width and height
    in pixels; room: more height that is kept free below it, for what a run shows. inside: what a subgraph holds."""

    number: int
    kind: str
    title: str | None
    definition: dict[str, Any]
    linked: dict[str, Wire]
    values: dict[str, Any]
    size: tuple[int, int]
    room: int = 0
    models: list[dict[str, str]] = field(default_factory=list)
    position: tuple[int, int] = (0, 0)
    inside: dict[str, Any] | None = None
    properties: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, output: str | int) -> Wire:
        """An output by name or number. Raises ValueError for one that the node does not have."""
        names = self.definition["output_name"]
        slot = output if isinstance(output, int) else names.index(output)
        if slot >= len(names):
            raise ValueError(f"{self.kind}: found output {slot}, expected below {len(names)}")
        return Wire(self, slot)

    @property
    def slots(self) -> list[dict[str, Any]]:
        """The inputs in the browser's format, sockets first."""
        widgets = dict(widgets_of(self.definition))
        required = self.definition["input"].get("required", {})
        sockets, widget_inputs = [], []
        for name, kind, _ in inputs_of(self.definition):
            entry: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if name in widgets:
                widget_inputs.append(entry | {"widget": {"name": name}})
            else:
                sockets.append(entry if name in required else entry | {"shape": OPTIONAL_SHAPE})
        return sockets + widget_inputs

    @property
    def box(self) -> Box:
        (x, y), (width, height) = self.position, self.size
        return Box(x, y - TITLE, x + width, y + height + self.room)


@dataclass
class Group:
    """A frame around nodes, in a column of the layout."""

    title: str
    column: int
    nodes: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Link:
    """A connection: its number, where it comes from and goes to, its type, and its reroute points."""

    number: int
    wire: Wire
    target: Node
    slot: int
    kind: str
    points: list[Point]
