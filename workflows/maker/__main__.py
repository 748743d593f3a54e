"""`python -m workflows.maker`: writes the workflows, their API-format prompts and the cards.

With `--server URL` (a ComfyUI with the pack) it also updates the node definitions and the
pictures of the workflows that have no card.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from salt.comfy_client.client import ComfyServer, results
from salt.comfy_client.workflow import NOTES, to_prompt

from .graph import Graph
from .node_definitions import load_definitions, reduce_definition, save_definitions
from .templates import CARDS, WORKFLOWS
from .thumbnails import card, frame_sheet

FOLDER = Path(__file__).parents[1]


def build(name: str, definitions: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow in the browser's format, and its API-format prompt.

    definitions: of a server's nodes, or `load_definitions()`.
    """
    graph = Graph(name, definitions)
    WORKFLOWS[name](graph)
    workflow = graph.workflow()
    return workflow, to_prompt(workflow, definitions)


def to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write(definitions: dict[str, Any]) -> None:
    """Write all workflows and their API-format prompts."""
    (FOLDER / "api").mkdir(exist_ok=True)
    for name in WORKFLOWS:
        workflow, prompt = build(name, definitions)
        (FOLDER / f"{name}.json").write_text(to_json(workflow), encoding="utf-8")
        (FOLDER / "api" / f"{name}.json").write_text(to_json(prompt), encoding="utf-8")


def write_picture(name: str, server: ComfyServer) -> None:
    """Run a workflow on the server and write its picture: a sheet of frames of its videos."""
    from salt.cli.run_workflow import finished

    prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    record = finished(server, server.queue(prompt), name)
    with tempfile.TemporaryDirectory() as folder:
        files = [server.download(result, Path(folder)) for result in results(record)]
        videos = sorted(path for path in files if path.suffix in (".mp4", ".webp"))
        frame_sheet(videos, FOLDER / f"{name}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflows.maker", description=__doc__)
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI with the pack in it")
    arguments = parser.parse_args()
    server = ComfyServer(arguments.server) if arguments.server else None
    if server:
        definitions = {node_type: reduce_definition(entry) for node_type, entry in server.node_info().items()}
        save_definitions(definitions, used_types(definitions))
    write(load_definitions())
    for name, lines in CARDS.items():
        card(lines[0], list(lines[1:]), FOLDER / f"{name}.jpg")
    if server:
        for name in [name for name in WORKFLOWS if name not in CARDS]:
            write_picture(name, server)


def used_types(definitions: dict[str, Any]) -> set[str]:
    """The types of all nodes in all workflows."""
    return {node["type"] for name in WORKFLOWS for node in build(name, definitions)[0]["nodes"]} - NOTES


if __name__ == "__main__":
    main()
