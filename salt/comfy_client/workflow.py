"""Conversion of a workflow as ComfyUI's browser saves it to the API-format prompt that its server accepts.

A workflow lists the widget values of a node by position, a prompt by name; the server's node definitions
(`/object_info`) connect the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..io.fields import FieldError, read_fields, read_value, shown
from .link_sources import PRIMITIVE, REROUTE, Value, source_of
from .saved_graph import BYPASSED, MUTED, SavedNode, Scope, read_workflow

# A choice of which every option has inputs of its own: widgets right behind it, named `CHOICE.INPUT`.
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}
NOTES = {"Note", "MarkdownNote"}
UPLOADS = ("image_upload", "video_upload", "audio_upload")

Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class NodeDefinition:
    """One node of `/object_info`, as far as it is used."""

    input: dict[str, Any]
    display_name: str | None = None


def check_definition(definition: object) -> None:
    """Raise FieldError for a node definition of `/object_info` that cannot be read."""
    _check_inputs(read_fields(NodeDefinition, definition).input, "input")


def _check_inputs(inputs: dict[str, Any], field: str) -> None:
    for group in ("required", "optional"):
        for name, entry in read_value(dict[str, list[Any]], inputs.get(group, {}), f"{field}.{group}").items():
            if not entry or not isinstance(entry[0], (str, list)) or not isinstance((*entry, {}, {})[1], dict):
                raise FieldError(f"{field}.{group}.{name}: found {shown(entry)}, expected [type, options]")
            if entry[0] == DYNAMIC:
                for choice in _choices((*entry, {})[1], f"{field}.{group}.{name}"):
                    _check_inputs(choice.inputs, f"{field}.{group}.{name}.{choice.key:.40}")


def _choices(options: dict[str, Any], field: str = "") -> list[Choice]:
    """The options of a dynamic choice."""
    return read_value(list[Choice], options.get("options", []), f"{field}.options")


@dataclass(frozen=True)
class Choice:
    """An option of a dynamic choice, with the inputs that it brings."""

    key: str
    inputs: dict[str, Any]


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
    for name, _, kind, options in _entries(definition):
        yield name, kind, options


def _entries(definition: dict[str, Any]) -> Iterator[tuple[str, list[Any], str, dict[str, Any]]]:
    """As `inputs_of`, with the whole entry after the name."""
    for group in ("required", "optional"):
        for name, entry in definition["input"].get(group, {}).items():
            kind, options = entry[0], entry[1] if len(entry) > 1 else {}
            yield name, entry, "COMBO" if isinstance(kind, list) else kind, options


def widgets_of(definition: dict[str, Any]) -> list[tuple[str, bool]]:
    """Names of a node's widgets in the order of `widgets_values`, and whether each has one more value behind it.

    That value is only for the browser: how the seed changes after a run, or the upload button.
    """
    return [
        (name, _has_extra(name, kind, options))
        for name, kind, options in inputs_of(definition)
        if _is_widget(kind, options)
    ]


def _is_widget(kind: str, options: dict[str, Any]) -> bool:
    return kind in WIDGET_TYPES and not options.get("forceInput")


def _has_extra(name: str, kind: str, options: dict[str, Any]) -> bool:
    seed = options.get("control_after_generate") or (kind == "INT" and name in ("seed", "noise_seed"))
    return bool(seed) or any(options.get(u) for u in UPLOADS)


def default_of(kind: str, entry: list[Any], options: dict[str, Any]) -> Any:
    """The value of a new widget on the page; None where a choice has nothing to choose from."""
    if options.get("default") is not None:
        return options["default"]
    if kind == DYNAMIC:
        return next((choice.key for choice in _choices(options)), None)
    if kind == "COMBO":
        choices = entry[0] if isinstance(entry[0], list) else options.get("options")
        return choices[0] if isinstance(choices, list) and choices else None
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "")


def to_prompt(workflow: dict[str, Any], info: dict[str, Any]) -> Prompt:
    """The API-format prompt of a workflow, as ComfyUI's page makes it.

    info: the server's `/object_info`. Raises ValueError for what cannot be converted: nodes that the server does not
    have, group nodes, links that lead nowhere, and values that do not fit a node's widgets.
    """
    root = read_workflow(workflow)
    only_on_page = {*NOTES, REROUTE, PRIMITIVE}
    active = [
        (scope, node)
        for scope, node in root.walk()
        if node.mode not in (MUTED, BYPASSED) and node.type not in only_on_page
    ]
    for _, node in active:
        if node.type.startswith(("workflow/", "workflow>")) and node.type not in info:
            raise ValueError(f"{node}: group nodes are not supported; convert it to a subgraph and save again")
    if missing := sorted({node.type for _, node in active} - info.keys()):
        raise ValueError(f"the workflow has nodes that this server does not have: {names_of(missing)}")
    for name in {node.type for _, node in active}:
        try:
            check_definition(info[name])
        except FieldError as error:
            raise FieldError(f"the server's definition of {name:.60}: {error}") from None
    prompt: Prompt = {}
    for scope, node in active:
        definition = info[node.type]
        prompt[scope.number(node)] = {
            "class_type": node.type,
            "inputs": _widget_values(node, definition) | _linked_values(scope, node),
            "_meta": {"title": node.title or definition.get("display_name") or node.type},
        }
    return prompt


def _linked_values(scope: Scope, node: SavedNode) -> dict[str, Any]:
    """What a node gets through links: [number, slot] of another node, or a Primitive node's value."""
    linked: dict[str, Any] = {}
    for index, slot in enumerate(node.slots):
        source = source_of(scope, node, index)
        if isinstance(source, Value):
            linked[slot.name] = _as_value(source.value)
        elif source is not None:
            linked[slot.name] = [source.number, source.slot]
    return linked


def _widget_values(node: SavedNode, definition: dict[str, Any]) -> dict[str, Any]:
    """A node's widget values by name; widgets that are newer than the file have the server's defaults."""
    saved = node.widgets_values or []
    if not isinstance(saved, (list, dict)):
        raise FieldError(f"node {node.id}: widgets_values: found {shown(saved)}, expected a list")
    rest = saved.copy()
    values = {name: _as_value(value) for name, value in _take_values(definition, rest)}
    if isinstance(rest, list) and rest:
        raise ValueError(
            f"{node}: found {len(saved)} widget values, expected at most {len(saved) - len(rest)}: the workflow was "
            "saved by another version of the node"
        )
    return values


def _take_values(
    definition: dict[str, Any], rest: list[Any] | dict[str, Any], before: str = ""
) -> Iterator[tuple[str, Any]]:
    """Name and value of every widget, and of those that a chosen option brings; values are taken off `rest`, which has
    them by position or, as some packs save them, by name."""
    for short, entry, kind, options in _entries(definition):
        if not _is_widget(kind, options):
            continue
        name = before + short
        if isinstance(rest, dict) and name in rest:
            value = rest[name]
        elif isinstance(rest, list) and rest:
            value = rest[0]
            del rest[: 2 if _has_extra(short, kind, options) else 1]
        elif (value := default_of(kind, entry, options)) is None:
            continue
        yield name, value
        if kind == DYNAMIC:
            for choice in _choices(options):
                if choice.key == value:
                    yield from _take_values({"input": choice.inputs}, rest, f"{name}.")


def _as_value(value: Any) -> Any:
    """A list as the page sends it: by itself it would be a link."""
    return {"__value__": value} if isinstance(value, list) else value
