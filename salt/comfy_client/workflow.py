"""Conversion of a workflow as ComfyUI's browser saves it to the API-format prompt that its server accepts.

A workflow lists the widget values of a node by position, a prompt by name; the server's node definitions
(`/object_info`) connect the two. Flat workflows only: no subgraphs, no bypassed nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4  # LiteGraph's node modes; 0 is active
UPLOADS = ("image_upload", "video_upload", "audio_upload")

Prompt = dict[str, dict[str, Any]]


def is_browser_format(graph: object) -> bool:
    """Whether `graph` is a workflow as the browser saves it, not an API-format prompt."""
    return isinstance(graph, dict) and isinstance(graph.get("nodes"), list)


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
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES and node.get("mode") != MUTED}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    if missing := sorted({node["type"] for node in nodes.values()} - info.keys()):
        raise ValueError(f"the workflow has nodes that this server does not have: {', '.join(missing)}")
    prompt: Prompt = {}
    for number, node in nodes.items():
        if node.get("mode") == BYPASSED:
            raise ValueError(f"node {number} ({node['type']}): bypassed nodes are not supported")
        linked = {i["name"]: links[i["link"]] for i in node.get("inputs", []) if i.get("link") is not None}
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
