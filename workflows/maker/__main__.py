"""`python -m workflows.maker`: writes the workflows, their API-format prompts, the blueprints and the cards.

With a server (a ComfyUI with the pack) it first updates the node definitions, and with `--pictures` it runs the
workflows that need nothing there, for their thumbnails.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salt.comfy_client.client import ComfyServer, results
from salt.comfy_client.workflow import to_prompt

from .blueprints import BLUEPRINTS, build_blueprint
from .graph import Graph
from .node_definitions import load_definitions, reduce_definition, save_definitions
from .templates import CARDS, WORKFLOWS
from .thumbnails import card, moving_picture

FOLDER = Path(__file__).parents[1]
BLUEPRINT_FOLDER = FOLDER.parent / "subgraphs"  # the name by which ComfyUI finds it
PICTURE_SECONDS = 5.0  # of a clip, for its thumbnail


def build(name: str, definitions: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow in the browser's format, and its API-format prompt.

    definitions: of a server's nodes, or `load_definitions()`.
    """
    graph = Graph(name, definitions)
    WORKFLOWS[name].draw(graph)
    workflow = graph.workflow()
    return workflow, to_prompt(workflow, definitions)


def to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write(definitions: dict[str, Any]) -> None:
    """Write all workflows, their API-format prompts, and the blueprints; older files of other names are removed."""
    files: dict[Path, dict[str, Any]] = {}
    for name, template in WORKFLOWS.items():
        files[FOLDER / f"{template.title}.json"], files[FOLDER / "api" / f"{name}.json"] = build(name, definitions)
    files |= {BLUEPRINT_FOLDER / f"{name}.json": build_blueprint(name, definitions) for name in BLUEPRINTS}
    for folder in (FOLDER, FOLDER / "api", BLUEPRINT_FOLDER):
        folder.mkdir(exist_ok=True)
        for path in set(folder.glob("*.json")) - set(files):
            path.unlink()
    for path, content in files.items():
        path.write_text(to_json(content), encoding="utf-8")


def write_picture(name: str, server: ComfyServer) -> None:
    """Run a workflow on the server, and write its thumbnail from what it saves."""
    from salt.cli.run_workflow import wait_for

    prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if isinstance(node["inputs"].get("seconds"), (int, float)):
            node["inputs"]["seconds"] = min(node["inputs"]["seconds"], PICTURE_SECONDS)
    record = wait_for(server, server.queue(prompt), name)
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(server.download(result, Path(folder)) for result in results(record))
        shown = [path for path in files if path.suffix in (".mp4", ".png")]
        moving_picture(shown, FOLDER / f"{WORKFLOWS[name].title}.jpg")


@contextmanager
def server_of(url: str | None, is_local: bool) -> Iterator[ComfyServer | None]:
    """The ComfyUI to ask: at `url`, or one started for this (COMFYUI_PATH, COMFYUI_PYTHON); None for neither."""
    if not is_local:
        yield ComfyServer(url) if url else None
        return
    from tests.helpers.comfyui_server import LocalServer, make_bare_folder

    with tempfile.TemporaryDirectory() as folder:
        started = LocalServer(make_bare_folder(Path(folder)))
        try:
            yield started
        finally:
            started.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflows.maker", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--server", metavar="URL", help="take the nodes' inputs from a running ComfyUI with the pack")
    source.add_argument("--local-server", action="store_true", help="the same from one that is started for this")
    parser.add_argument(
        "--pictures", metavar="NAME", nargs="*", help="take new thumbnails of these workflows (without a name: of all)"
    )
    arguments = parser.parse_args()
    pictures = arguments.pictures
    if pictures is not None and not (arguments.server or arguments.local_server):
        parser.error("--pictures: found no server, expected --server or --local-server")
    free = [name for name, template in WORKFLOWS.items() if template.is_free]
    if unknown := sorted(set(pictures or []) - set(free)):
        parser.error(f"--pictures: found {', '.join(unknown)}, expected workflows that need nothing: {', '.join(free)}")
    with server_of(arguments.server, arguments.local_server) as server:
        if server:
            definitions = {node_type: reduce_definition(entry) for node_type, entry in server.node_info().items()}
            save_definitions(definitions, used_types(definitions))
        write(load_definitions())
        for name, lines in CARDS.items():
            card(lines[0], list(lines[1:]), FOLDER / f"{WORKFLOWS[name].title}.jpg")
        if server and pictures is not None:
            for name in pictures or free:
                write_picture(name, server)


def used_types(definitions: dict[str, Any]) -> set[str]:
    """The types of all nodes in all workflows."""
    return {node["class_type"] for name in WORKFLOWS for node in build(name, definitions)[1].values()}


if __name__ == "__main__":
    main()
