"""What a ComfyUI server says of the nodes used here, kept in `nodes.json`: workflows can be drawn without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from salt.comfy_client.workflow import inputs_of, widgets_of

KEPT = Path(__file__).with_name("nodes.json")
# Widgets whose choices are the files on that machine.
FILES = {"student", "clip_name", "vae_name", "image", "file", "latent"}
TOLD = ("control_after_generate", "forceInput", "image_upload", "multiline")


def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text())


def digest(about: dict[str, Any]) -> dict[str, Any]:
    """One node of `/object_info`, down to what drawing and converting it needs: the same on every machine."""
    inputs: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    widgets = {name for name, _ in widgets_of(about)}
    choices = {name: entry[0] for part in inputs for name, entry in about["input"].get(part, {}).items()}
    for name, kind, options in inputs_of(about):
        told = {key: options[key] for key in TOLD if options.get(key)}
        if name in widgets and name not in FILES:
            listed = options.get("options") or (choices[name] if isinstance(choices[name], list) else [])
            default = options.get("default", listed[0] if listed else None)
            told |= {} if default is None else {"default": default}
        part = "required" if name in about["input"].get("required", {}) else "optional"
        inputs[part][name] = [kind, told]
    outputs = {"output": about["output"], "output_name": about["output_name"]}
    return {"display_name": about["display_name"], "input": inputs, **outputs}


def refresh(known: dict[str, Any], kinds: set[str]) -> None:
    """Write `nodes.json` anew: the digests of these kinds."""
    KEPT.write_text(json.dumps({kind: known[kind] for kind in sorted(kinds)}, indent=1) + "\n")
