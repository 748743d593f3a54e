"""Definitions of the nodes used here, saved in `nodes.json`, so that workflows can be written without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from salt.comfy_client.workflow import inputs_of, widgets_of

DEFINITIONS_FILE = Path(__file__).with_name("nodes.json")
# Widgets whose choices are the files on the server's machine.
FILE_WIDGETS = {"student", "clip_name", "vae_name", "lora_name", "model_name", "image", "file", "latent"}
SAVED_OPTIONS = ("advanced", "control_after_generate", "forceInput", "image_upload", "multiline")


def load_definitions() -> dict[str, Any]:
    """The saved definitions by node type, in the layout of `/object_info`."""
    return json.loads(DEFINITIONS_FILE.read_text())


def reduce_definition(definition: dict[str, Any]) -> dict[str, Any]:
    """One node of `/object_info`, reduced to what workflows need, which is the same on every machine."""
    inputs: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    widgets = {name for name, _ in widgets_of(definition)}
    choices = {name: entry[0] for part in inputs for name, entry in definition["input"].get(part, {}).items()}
    for name, kind, options in inputs_of(definition):
        saved = {key: options[key] for key in SAVED_OPTIONS if options.get(key)}
        if name in widgets and name not in FILE_WIDGETS:
            listed = options.get("options") or (choices[name] if isinstance(choices[name], list) else [])
            default = options.get("default", listed[0] if listed else None)
            saved |= {} if default is None else {"default": default}
        part = "required" if name in definition["input"].get("required", {}) else "optional"
        inputs[part][name] = [kind, saved]
    outputs = {"output": definition["output"], "output_name": definition["output_name"]}
    return {"display_name": definition["display_name"], "input": inputs, **outputs}


def save_definitions(definitions: dict[str, Any], types: set[str]) -> None:
    """Write `nodes.json` with the definitions of these node types."""
    DEFINITIONS_FILE.write_text(
        json.dumps({node_type: definitions[node_type] for node_type in sorted(types)}, indent=1) + "\n"
    )
