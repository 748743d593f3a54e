"""Which node's output an input gets, through all that ComfyUI's page resolves before it queues a prompt.

A bypassed node hands on its first input of the same type, a muted one nothing; a subgraph's inputs and outputs, and the
page's own Reroute and Primitive nodes, lead to what is behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..io.fields import FieldError
from .saved_graph import BYPASSED, MUTED, SUBGRAPH_INPUTS, Link, SavedNode, Scope

REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"  # nodes of the page alone


@dataclass(frozen=True)
class Source:
    """An output of a node of the prompt."""

    number: str
    slot: int


@dataclass(frozen=True)
class Value:
    """What a Primitive node holds, for a widget."""

    value: Any


@dataclass(frozen=True)
class _Input:
    """An input to resolve. kind: the type that is asked for, where it is not the input's own."""

    scope: Scope
    node: SavedNode
    index: int
    kind: str | None = None


@dataclass(frozen=True)
class _Output:
    scope: Scope
    node: SavedNode
    slot: int
    kind: str


def source_of(scope: Scope, node: SavedNode, index: int) -> Source | Value | None:
    """What an input gets; None where that is nothing, so that a widget keeps its own value.

    Raises FieldError for links that lead nowhere or in a circle.
    """
    at: _Input | _Output | Source | Value | None = _Input(scope, node, index)
    seen: set[tuple[str, bool, int]] = set()
    while isinstance(at, (_Input, _Output)):
        place = (at.scope.number(at.node), isinstance(at, _Input), at.index if isinstance(at, _Input) else at.slot)
        if place in seen:
            raise FieldError(f"{at.node}: found links in a circle")
        seen.add(place)
        at = _behind_input(at) if isinstance(at, _Input) else _behind_output(at)
    return at


def _behind_input(at: _Input) -> _Input | _Output | None:
    link = at.scope.link_to(at.node, at.index)
    if link is None:
        return None
    kind = at.node.slots[at.index].kind if at.kind is None else at.kind
    if str(link.origin_id) == SUBGRAPH_INPUTS:
        return _outside(at.scope, link)
    return _Output(at.scope, at.scope.origin(link), link.origin_slot, kind)


def _outside(scope: Scope, link: Link) -> _Input | None:
    """The input of the node that stands for a subgraph, for a link from the subgraph's input node."""
    if scope.parent is None or scope.instance is None:
        raise FieldError(f"link {link.id}: found the inputs of a subgraph outside one")
    declared, slots = scope.graph.inputs, scope.instance.slots
    index = link.origin_slot
    if 0 <= index < len(declared):
        index = next((i for i, slot in enumerate(slots) if slot.name == declared[index].name), index)
    return _Input(scope.parent, scope.instance, index) if 0 <= index < len(slots) else None


def _behind_output(at: _Output) -> _Input | _Output | Source | Value | None:
    scope, node = at.scope, at.node
    if node.mode == MUTED:
        return None
    if node.mode == BYPASSED:
        index = _bypassing_input(node, at.slot, at.kind)
        return None if index is None else _Input(scope, node, index)
    if (inner := scope.children.get(str(node.id))) is not None:
        link = inner.output_links.get(at.slot)
        if link is None:
            return None
        if str(link.origin_id) == SUBGRAPH_INPUTS:
            return _outside(inner, link)
        return _Output(inner, inner.origin(link), link.origin_slot, at.kind)
    if node.type == REROUTE:
        return _Input(scope, node, 0, at.kind)
    if node.type == PRIMITIVE:
        values = node.widgets_values
        return Value(values[0]) if isinstance(values, list) and values else None
    return Source(scope.number(node), at.slot)


def _bypassing_input(node: SavedNode, slot: int, kind: str) -> int | None:
    """The input that a bypassed node hands on at an output: the opposite one where its type fits, else the first."""
    inputs, outputs = node.slots, node.outputs or ()
    if kind in ("*", ""):
        return (slot if slot < len(inputs) else 0) if inputs else None
    given = outputs[slot].kind if 0 <= slot < len(outputs) else kind
    fits = [i for i, x in enumerate(inputs) if _compatible(x.kind, given) and _compatible(x.kind, kind)]
    if slot in fits:
        return slot
    same = [i for i, x in enumerate(inputs) if x.kind == kind]
    return next(iter(same + fits), None)


def _compatible(a: str, b: str) -> bool:
    """Whether the page connects these types; a type may be several with commas, or `*` for any."""
    return a in ("*", "") or b in ("*", "") or bool(set(a.lower().split(",")) & set(b.lower().split(",")))
