"""`python -m workflows.maker`: writes the workflows, their API-format twins and the pictures of those that cannot run
here. With `--server URL` (a ComfyUI with the pack) it asks what the nodes look like now, and takes the pictures."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from salt.comfy_client.client import ComfyServer, results
from salt.comfy_client.workflow import NOTES, to_prompt

from .about import digest, kept, refresh
from .graph import Graph
from .recipes import CARDS, WORKFLOWS
from .thumbnails import card, strip

FOLDER = Path(__file__).parents[1]


def drawn(name: str, info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow as the browser has it, and its API-format twin.

    info: what a server says of its nodes; `about.kept()` is enough.
    """
    graph = Graph(name, info)
    WORKFLOWS[name](graph)
    workflow = graph.workflow()
    return workflow, to_prompt(workflow, info)


def text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write(info: dict[str, Any]) -> None:
    (FOLDER / "api").mkdir(exist_ok=True)
    for name in WORKFLOWS:
        workflow, prompt = drawn(name, info)
        (FOLDER / f"{name}.json").write_text(text(workflow), encoding="utf-8")
        (FOLDER / "api" / f"{name}.json").write_text(text(prompt), encoding="utf-8")


def photograph(name: str, server: ComfyServer) -> None:
    """Run a workflow and keep frames of what it made."""
    from salt.cli.run_workflow import finished

    prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    record = finished(server, server.queue(prompt), name)
    with tempfile.TemporaryDirectory() as folder:
        made = [server.download(result, Path(folder)) for result in results(record)]
        pictures = sorted(path for path in made if path.suffix in (".mp4", ".webp"))
        strip(pictures, FOLDER / f"{name}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflows.maker", description=__doc__)
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI with the pack in it")
    arguments = parser.parse_args()
    server = ComfyServer(arguments.server) if arguments.server else None
    if server:
        known = {kind: digest(about) for kind, about in server.node_info().items()}
        refresh(known, used(known))
    write(kept())
    for name, lines in CARDS.items():
        card(lines[0], list(lines[1:]), FOLDER / f"{name}.jpg")
    for name in [] if server is None else [n for n in WORKFLOWS if n not in CARDS]:
        photograph(name, server)


def used(info: dict[str, Any]) -> set[str]:
    """The types of all nodes in all workflows."""
    return {node["type"] for name in WORKFLOWS for node in drawn(name, info)[0]["nodes"]} - NOTES


if __name__ == "__main__":
    main()
