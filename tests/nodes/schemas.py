"""The nodes' schemas without a ComfyUI: stubs stand in for its modules and record the arguments of inputs and outputs.

`python tests/nodes/schemas.py` writes locales/en/nodeDefs.json anew from them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


@dataclass
class Schema:
    """io.Schema's fields, as 0.27.0 has them."""

    node_id: str
    display_name: str = ""
    category: str = ""
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_dev_only: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False
    has_intermediate_output: bool = False
    accept_all_inputs: bool = False


class Slot:
    """An input or output of some type: its id, and the settings that it was declared with."""

    def __init__(
        self, type: str, id: str | None = None, *_: Any, tooltip: str | None = None,
        extra_dict: dict[str, Any] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.type, self.id, self.tooltip = type, id, tooltip
        self.settings = {**settings, "extra_dict": extra_dict or {}}
        self.shown = settings.get("display_name")


class Types:
    """Stands in for `comfy_api.latest.io`: every type has Input and Output."""

    ComfyNode, Schema, NodeOutput = object, Schema, object

    def __getattr__(self, name: str) -> Any:
        return self.Custom(name.upper())

    def Custom(self, name: str) -> Any:
        return SimpleNamespace(Input=partial(Slot, name), Output=partial(Slot, name), name=name)


def import_pack() -> None:
    """The pack as the module `pack`. Run in a process of its own: it replaces ComfyUI's modules by stubs."""
    api: Any = ModuleType("comfy_api")
    latest: Any = ModuleType("comfy_api.latest")
    latest.ComfyExtension, latest.io, latest.ui = object, Types(), SimpleNamespace()
    paths: Any = ModuleType("folder_paths")
    paths.get_filename_list = paths.get_folder_paths = lambda _: []
    paths.get_output_directory = paths.get_input_directory = lambda: "/nowhere"
    sys.modules |= {"comfy_api": api, "comfy_api.latest": latest, "folder_paths": paths}
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def nodes() -> list[type]:
    """All node classes of the pack."""
    import_pack()
    names = importlib.import_module("pack.nodes").NODE_MODULES
    return [node for name in names for node in importlib.import_module(f"pack.nodes.{name}").NODES]


def plain(text: str) -> str:
    """Without what the frontend's messages take for syntax."""
    return text.replace("|", "/")


def declared(slot: Slot) -> dict[str, Any]:
    """A socket or widget: its id and type, and what a widget may be set to."""
    limits = {name: slot.settings.get(name) for name in ("default", "min", "max")}
    options = [str(option) for option in slot.settings.get("options", [])]
    optional = bool(slot.settings.get("optional"))
    return {"id": slot.id, "type": slot.type, "optional": optional, "options": options, **limits}


def described(node: Any) -> dict[str, Any]:
    """A node as ComfyUI's locale files describe it, with its search aliases, sockets and widgets beside."""
    schema = node.define_schema()
    inputs = {s.id: {"name": s.id, "tooltip": plain(s.tooltip or "")} for s in schema.inputs}
    outputs = {str(i): {"name": s.shown, "tooltip": plain(s.tooltip or "")} for i, s in enumerate(schema.outputs)}
    for output in outputs.values():
        if output["name"] is None:
            del output["name"]
    return {
        "id": schema.node_id,
        "aliases": schema.search_aliases,
        "category": schema.category,
        "inputs": [declared(slot) for slot in schema.inputs],
        "outputs": [declared(slot) for slot in schema.outputs],
        "locale": {
            "display_name": schema.display_name,
            "description": plain(schema.description),
            "inputs": inputs,
            "outputs": outputs,
        },
    }


if __name__ == "__main__":
    found = [described(node) for node in nodes()]
    if sys.argv[1:] == ["--print"]:
        print(json.dumps(found))
    else:
        ENGLISH.parent.mkdir(parents=True, exist_ok=True)
        ENGLISH.write_text(json.dumps({n["id"]: n["locale"] for n in found}, indent=2) + "\n")
