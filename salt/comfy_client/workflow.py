"""Conversion of a workflow as ComfyUI's browser saves it to the API-format prompt that its server accepts.

A workflow lists the widget values of a node by position, a prompt by name; the server's node definitions
(`/object_info`) connect the two. Flat workflows only: no subgraphs, no bypassed nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..io.fields import FieldError, read_fields, read_value, shown

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4  # LiteGraph's node modes; 0 is active
UPLOADS = ("image_upload", "video_upload", "audio_upload")

Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class NodeDefinition:
    """One node of `/object_info`, as far as it is used."""

    input: dict[str, Any]
    display_name: str | None = None


@dataclass(frozen=True)
class SavedInput:
    """A socket of a node in a workflow file."""

    name: str
    link: int | None = None


@dataclass(frozen=True)
class SavedNode:
    """A node in a workflow file, as far as it is used. widgets_values: a list, or an object by name."""

    id: int | str
    type: str
    mode: int = 0
    title: str | None = None
    inputs: tuple[SavedInput, ...] | None = None
    widgets_values: Any = None


def check_definition(definition: object) -> None:
    """Raise FieldError for a node definition of `/object_info` that cannot be read."""
    known = read_fields(NodeDefinition, definition)
    for group in ("required", "optional"):
        for name, entry in read_value(dict[str, list[Any]], known.input.get(group, {}), f"input.{group}").items():
            if not entry or not isinstance(entry[0], (str, list)) or not isinstance((*entry, {}, {})[1], dict):
                raise FieldError(f"input.{group}.{name}: found {shown(entry)}, expected [type, options]")


@dataclass(frozen=True)
class PromptMeta:
    title: str | None = None


@dataclass(frozen=True)
class PromptNode:
    """A node of an API-format prompt."""

    class_type: str
    inputs: dict[str, Any]
    _meta: PromptMeta | None = None


def check_prompt(prompt: dict[str, Any]) -> None:
    """Raise FieldError for a JSON object that is no API-format prompt."""
    if not prompt:
        raise FieldError("found no nodes")
    for name, node in prompt.items():
        read_fields(PromptNode, node, f"node {name:.40}")


def is_browser_format(graph: object) -> bool:
    """Whether `graph` is a workflow as the browser saves it, not an API-format prompt."""
    return isinstance(graph, dict) and isinstance(graph.get("nodes"), list) and bool(graph["nodes"])


def names_of(types: list[str]) -> str:
    """Node types in an error: the first five."""
    more = f", ... ({len(types)} in all)" if len(types) > 5 else ""
    return ", ".join(name[:60] for name in types[:5]) + more


def inputs_of(definition: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, type, options) of a node's inputs in the order of its definition; a list of choices has type COMBO.

    definition: one node of `/object_info`.
    """
    for group in ("required", "optional"):
        for name, entry in definition["input"].get(group, {}).items():
            kind, options = entry[0], entry[1] if len(entry) > 1 else {}
            yield name, "COMBO" if isinstance(kind, list) else kind, options


def widgets_of(definition: dict[str, Any]) -> list[tuple[str, bool]]:
    """Names of a node's widgets in the order of `widgets_values`, and whether each has one more value behind it.

    That value is only for the browser: how the seed changes after a run, or the upload button.
    """
    widgets = []
    for name, kind, options in inputs_of(definition):
        if kind in WIDGET_TYPES and not options.get("forceInput"):
            seed = options.get("control_after_generate") or (kind == "INT" and name in ("seed", "noise_seed"))
            widgets.append((name, bool(seed) or any(options.get(u) for u in UPLOADS)))
    return widgets


def to_prompt(workflow: dict[str, Any], info: dict[str, Any]) -> Prompt:
    """The API-format prompt of a workflow.

    info: the server's `/object_info`. Raises ValueError for what cannot be converted: nodes that the server does not
    have, subgraphs, bypassed nodes, and values that do not fit a node's widgets.
    """
    for i, node in enumerate(workflow["nodes"]):
        read_fields(SavedNode, node, f"nodes[{i}]")
    listed: list[list[Any]] = read_value(list[list[Any]], workflow.get("links", []), "links")
    for i, link in enumerate(listed):
        if len(link) < 3 or not all(isinstance(x, (int, str)) for x in link[:3]):
            raise FieldError(f"links[{i}]: found {shown(link)}, expected [number, node, slot, node, slot, type]")
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES and node.get("mode") != MUTED}
    links = {link[0]: (link[1], link[2]) for link in listed}
    if missing := sorted({node["type"] for node in nodes.values()} - info.keys()):
        raise ValueError(f"the workflow has nodes that this server does not have: {names_of(missing)}")
    for name in {node["type"] for node in nodes.values()}:
        try:
            check_definition(info[name])
        except FieldError as error:
            raise FieldError(f"the server's definition of {name:.60}: {error}") from None
    prompt: Prompt = {}
    for number, node in nodes.items():
        if node.get("mode") == BYPASSED:
            raise ValueError(f"node {number} ({node['type']}): bypassed nodes are not supported")
        wires = {i["name"]: i["link"] for i in node.get("inputs") or [] if i.get("link") is not None}
        if lost := [f"{name} (link {link})" for name, link in wires.items() if link not in links]:
            raise FieldError(
                f"node {number} ({node['type']}): found no link for {', '.join(lost)}, expected it in links"
            )
        linked = {name: links[link] for name, link in wires.items()}
        wired = {name: [str(origin), slot] for name, (origin, slot) in linked.items() if origin in nodes}
        prompt[str(number)] = {
            "class_type": node["type"],
            "inputs": _widget_values(node, info[node["type"]]) | wired,
            "_meta": {"title": node.get("title") or info[node["type"]].get("display_name") or node["type"]},
        }
    return prompt


def _widget_values(node: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """A node's widget values by name; widgets that are newer than the file keep their defaults on the server."""
    saved, position, values = node.get("widgets_values") or [], 0, {}
    if not isinstance(saved, (list, dict)):
        raise FieldError(f"node {node['id']}: widgets_values: found {shown(saved)}, expected a list")
    if isinstance(saved, dict):  # some packs save them by name
        return {name: saved[name] for name, _ in widgets_of(definition) if name in saved}
    for name, has_extra in widgets_of(definition):
        if position < len(saved):
            values[name] = saved[position]
        position += 2 if has_extra else 1
    if len(saved) > position:
        raise ValueError(
            f"node {node['id']} ({node['type']}): found {len(saved)} widget values, expected at most {position}: the "
            "workflow was saved by another version of the node"
        )
    return values
