"""The house's interpreter at ComfyUI's door: from the workflow that its browser saves to the prompt its server takes.

The browser's file lists the widgets of a node by position, the server's by name; in between stands what the server
says of its nodes (`/object_info`). Flat workflows only: no subgraphs, no bypassed nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4  # LiteGraph's modes; 0 is as usual
UPLOADS = ("image_upload", "video_upload", "audio_upload")

Prompt = dict[str, dict[str, Any]]


def is_browser_format(graph: Any) -> bool:
    """Whether this is a workflow as the browser saves it, and not an API-format prompt."""
    return isinstance(graph, dict) and isinstance(graph.get("nodes"), list)


def inputs_of(about: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, type, options) of a node's inputs in the order of its definition; a list of choices is type COMBO.

    about: one node of `/object_info`.
    """
    for group in ("required", "optional"):
        for name, entry in about["input"].get(group, {}).items():
            kind, options = entry[0], entry[1] if len(entry) > 1 else {}
            yield name, "COMBO" if isinstance(kind, list) else kind, options


def widgets_of(about: dict[str, Any]) -> list[tuple[str, bool]]:
    """Names of a node's widgets as `widgets_values` has them, and whether one more value stands behind each.

    That one is what the seed does after a run, or the upload button: for the browser alone.
    """
    widgets = []
    for name, kind, options in inputs_of(about):
        if kind in WIDGETS and not options.get("forceInput"):
            seed = options.get("control_after_generate") or (kind == "INT" and name in ("seed", "noise_seed"))
            widgets.append((name, bool(seed) or any(options.get(u) for u in UPLOADS)))
    return widgets


def to_prompt(workflow: dict[str, Any], info: dict[str, Any]) -> Prompt:
    """The API-format prompt of a workflow.

    info: the server's `/object_info`. Raises ValueError for what this cannot convert: a node that the server does not
    have, subgraphs, bypassed nodes, and values that do not fit the node's widgets.
    """
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES and node.get("mode") != MUTED}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    if missing := sorted({node["type"] for node in nodes.values()} - info.keys()):
        raise ValueError(f"workflow: found nodes that this server does not have: {', '.join(missing)}")
    prompt: Prompt = {}
    for number, node in nodes.items():
        if node.get("mode") == BYPASSED:
            raise ValueError(f"node {number} ({node['type']}): found it bypassed, expected a workflow without that")
        linked = {i["name"]: links[i["link"]] for i in node.get("inputs", []) if i.get("link") is not None}
        wired = {name: [str(origin), slot] for name, (origin, slot) in linked.items() if origin in nodes}
        prompt[str(number)] = {
            "class_type": node["type"],
            "inputs": _widget_values(node, info[node["type"]]) | wired,
            "_meta": {"title": node.get("title") or info[node["type"]].get("display_name") or node["type"]},
        }
    return prompt


def _widget_values(node: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """A node's widget values by name; widgets that are newer than the file keep their defaults on the server."""
    given, at, values = node.get("widgets_values") or [], 0, {}
    if isinstance(given, dict):  # some packs name them
        return {name: given[name] for name, _ in widgets_of(about) if name in given}
    for name, followed in widgets_of(about):
        if at < len(given):
            values[name] = given[at]
        at += 2 if followed else 1
    if len(given) > at:
        raise ValueError(
            f"node {node['id']} ({node['type']}): found {len(given)} widget values, expected at most {at}: the "
            "workflow was saved by another version of the node"
        )
    return values
