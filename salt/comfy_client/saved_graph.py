"""A workflow file of ComfyUI's browser, read with types: nodes, links, and the subgraphs that its nodes stand for.

A subgraph is saved once in `definitions.subgraphs`; every node whose type is its id stands for it. Node numbers of the
prompt are those of the page: `7:2` is node 2 of the subgraph that node 7 stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..io.fields import FieldError, read_fields, read_value, shown

MUTED, BYPASSED = 2, 4  # LiteGraph's node modes; 0 is active
SUBGRAPH_INPUTS, SUBGRAPH_OUTPUTS = "-10", "-20"  # the numbers of a subgraph's own input and output node
MAX_NODES = 20_000  # with all subgraphs expanded: those of a small file can multiply
MAX_DEPTH = 50


@dataclass(frozen=True)
class SavedSlot:
    """An input or output of a node, or an input of a subgraph. type: text, or a number for events."""

    name: str = ""
    type: Any = None
    link: int | str | None = None

    @property
    def kind(self) -> str:
        return self.type if isinstance(self.type, str) else "*"


@dataclass(frozen=True)
class SavedNode:
    """A node in a workflow file, as far as it is used. widgets_values: a list, or an object by name."""

    id: int | str
    type: str
    mode: int = 0
    title: str | None = None
    inputs: tuple[SavedSlot, ...] | None = None
    outputs: tuple[SavedSlot, ...] | None = None
    widgets_values: Any = None

    @property
    def slots(self) -> tuple[SavedSlot, ...]:
        return self.inputs or ()

    def __str__(self) -> str:
        return f"node {str(self.id):.40} ({self.type:.60})"


@dataclass(frozen=True)
class Link:
    """Where a link comes from and goes to."""

    id: int | str
    origin_id: int | str
    origin_slot: int
    target_id: int | str = ""
    target_slot: int = 0


@dataclass(frozen=True)
class SavedGraph:
    """The nodes and links of a workflow, or of one subgraph."""

    nodes: tuple[SavedNode, ...]
    links: tuple[Link, ...]
    inputs: tuple[SavedSlot, ...] = ()


@dataclass
class Scope:
    """A graph where it is used. path: of its nodes' numbers. instance: the node of `parent` that stands for it."""

    path: str
    graph: SavedGraph
    parent: Scope | None = None
    instance: SavedNode | None = None
    children: dict[str, Scope] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = {str(node.id): node for node in self.graph.nodes}
        self.links = {str(link.id): link for link in self.graph.links}
        self.output_links = {x.target_slot: x for x in self.graph.links if str(x.target_id) == SUBGRAPH_OUTPUTS}

    def number(self, node: SavedNode) -> str:
        return f"{self.path}{node.id}"

    def link_to(self, node: SavedNode, index: int) -> Link | None:
        """The link at an input; None without one. Raises FieldError for one that the file does not have."""
        slot = node.slots[index] if index < len(node.slots) else None
        if slot is None or slot.link is None:
            return None
        if str(slot.link) not in self.links:
            raise FieldError(f"{node}: found no link for {slot.name} (link {slot.link}), expected it in links")
        return self.links[str(slot.link)]

    def origin(self, link: Link) -> SavedNode:
        if str(link.origin_id) not in self.nodes:
            raise FieldError(f"link {link.id}: found no node {shown(link.origin_id)} that it comes from")
        return self.nodes[str(link.origin_id)]

    def walk(self) -> Iterator[tuple[Scope, SavedNode]]:
        """Every node of the graph and of the subgraphs in it that are in use."""
        for number, node in self.nodes.items():
            if number in self.children:
                yield from self.children[number].walk()
            else:
                yield self, node


def read_workflow(workflow: dict[str, Any]) -> Scope:
    """A workflow with its subgraphs. Raises FieldError naming what cannot be read."""
    definitions = read_value(dict[str, Any], workflow.get("definitions") or {}, "definitions")
    listed = read_value(list[dict[str, Any]], definitions.get("subgraphs") or [], "definitions.subgraphs")
    subgraphs: dict[str, SavedGraph] = {}
    for i, subgraph in enumerate(listed):
        name = f"definitions.subgraphs[{i}]"
        subgraphs[read_value(str, subgraph.get("id"), f"{name}.id")] = _read_graph(subgraph, f"{name}.")
    root = Scope("", _read_graph(workflow, ""))
    uses: dict[str, int] = {}
    _expand(root, subgraphs, (), uses)
    for scope, node in _instances(root):
        if node.widgets_values and uses[node.type] > 1:
            raise FieldError(
                f"node {scope.number(node)}: found values of its own in one of {uses[node.type]} nodes of the same "
                "subgraph, which is not supported; save the workflow in a newer ComfyUI"
            )
    return root


def _read_graph(graph: dict[str, Any], prefix: str) -> SavedGraph:
    """prefix: of the fields' names in errors."""
    nodes = read_value(list[Any], graph.get("nodes"), f"{prefix}nodes")
    links = read_value(list[Any], graph.get("links") or [], f"{prefix}links")
    inputs = read_value(list[Any], (graph.get("inputs") or []) if prefix else [], f"{prefix}inputs")
    return SavedGraph(
        tuple(read_fields(SavedNode, node, f"{prefix}nodes[{i}]") for i, node in enumerate(nodes)),
        tuple(_read_link(link, f"{prefix}links[{i}]") for i, link in enumerate(links)),
        tuple(read_fields(SavedSlot, slot, f"{prefix}inputs[{i}]") for i, slot in enumerate(inputs)),
    )


def _read_link(link: object, name: str) -> Link:
    if isinstance(link, dict):
        return read_fields(Link, link, name)
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    if not isinstance(link, list) or len(link) < 3:
        raise FieldError(f"{name}: found {shown(link)}, expected [number, node, slot, node, slot, type]")
    return read_fields(Link, dict(zip(names, link, strict=False)), name)


def _expand(scope: Scope, subgraphs: dict[str, SavedGraph], around: tuple[str, ...], uses: dict[str, int]) -> None:
    """Put a scope in place of every node that stands for a subgraph and is in use. around: the subgraphs it lies in."""
    for number, node in scope.nodes.items():
        if node.type not in subgraphs or node.mode in (MUTED, BYPASSED):
            continue
        if node.type in around or len(around) >= MAX_DEPTH:
            problem = "contains itself" if node.type in around else f"lies more than {MAX_DEPTH} levels deep"
            raise FieldError(f"node {scope.number(node):.60}: its subgraph {problem}")
        uses[node.type] = uses.get(node.type, 0) + 1
        total = sum(count * len(subgraphs[name].nodes) for name, count in uses.items())
        if total > MAX_NODES:
            raise FieldError(f"definitions.subgraphs: found more than {MAX_NODES:,} nodes with all subgraphs expanded")
        inner = Scope(f"{scope.number(node)}:", subgraphs[node.type], scope, node)
        scope.children[number] = inner
        _expand(inner, subgraphs, (*around, node.type), uses)


def _instances(scope: Scope) -> Iterator[tuple[Scope, SavedNode]]:
    for number, child in scope.children.items():
        yield scope, scope.nodes[number]
        yield from _instances(child)
