"""Run a workflow on a running ComfyUI server and save its results."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.atomic import require_file
from ..io.printable import printable
from .option_types import file_path

if TYPE_CHECKING:
    from ..comfy_client.client import ComfyServer, Record
    from ..comfy_client.workflow import Prompt

POLL_SECONDS = 0.5
LOST_POLLS = 20  # so often in a row a run may be neither queued nor running nor in the history


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", type=file_path, help="API-format file (workflows/api/*.json), or a workflow that the browser saved"
    )
    command.add_argument("--server", default="http://127.0.0.1:8188", metavar="URL", help="default: %(default)s")
    command.add_argument("--out", type=file_path, default=Path("outputs"), help="folder for the results (outputs)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.WIDGET=VALUE",
        help="another value for a widget; NODE is a number, a title or a type. May be given again",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..comfy_client.client import ComfyServer, results

    graph = read_graph(arguments.file)
    server = ComfyServer(arguments.server)
    prompt = as_prompt(graph, server.node_info(), arguments.file)
    for change in arguments.set:
        set_widget(prompt, change)
    record = wait_for(server, server.queue(prompt), arguments.file.name)
    paths = [server.download(result, arguments.out) for result in results(record)]
    if not paths:
        raise ValueError(f"{arguments.file}: the run left no file, expected a node in it that saves something")
    for path in paths:
        print(printable(path))


def read_graph(path: Path) -> dict[str, Any]:
    """A workflow of either format. Raises ValueError for a file that is none."""
    from ..comfy_client.workflow import check_prompt, is_browser_format
    from ..io.fields import FieldError, read_object

    try:
        graph = read_object(require_file(path, "a ComfyUI workflow"))
        if not is_browser_format(graph):
            check_prompt(graph)
    except FieldError as error:
        raise ValueError(f"{path}: {error}, expected a ComfyUI workflow") from None
    return graph


def as_prompt(graph: dict[str, Any], info: dict[str, Any], path: Path) -> Prompt:
    """The workflow as the server takes it. Raises ValueError naming nodes that it does not have."""
    from ..comfy_client.workflow import is_browser_format, names_of, to_prompt

    try:
        prompt = to_prompt(graph, info) if is_browser_format(graph) else graph
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if missing := sorted({node["class_type"] for node in prompt.values()} - info.keys()):
        hint = "; is ComfyUI-Salt in its custom_nodes?" if any(name.startswith("Salt") for name in missing) else ""
        raise ValueError(f"{path}: found nodes that this server does not have: {names_of(missing)}{hint}")
    return prompt


def set_widget(prompt: Prompt, change: str) -> None:
    """Put NODE.WIDGET=VALUE into a prompt. Raises ValueError where there is no such node or widget, or several."""
    target, equals, text = change.partition("=")
    node, dot, widget = target.rpartition(".")
    if not (equals and dot):
        raise ValueError(f"--set: found {change!r}, expected NODE.WIDGET=VALUE")
    matches = {
        number
        for number, about in prompt.items()
        if node in (number, about["class_type"], (about.get("_meta") or {}).get("title"))
    }
    if len(matches) != 1:
        among = ", ".join(f"{n} ({prompt[n]['class_type']})" for n in sorted(matches or prompt))
        raise ValueError(f"--set {target}: found {len(matches)} nodes of that name, expected one of: {among}")
    inputs = prompt[matches.pop()]["inputs"]
    widgets = [name for name, value in inputs.items() if not isinstance(value, list)]
    if widget not in widgets:
        raise ValueError(f"--set {target}: found no such widget, expected one of: {', '.join(widgets)}")
    old = inputs[widget]
    inputs[widget] = text if isinstance(old, str) else _value(text, target)


def _value(text: str, target: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"--set {target}: found {text!r}, expected a number, true or false") from None


def wait_for(server: ComfyServer, number: str, title: str) -> Record:
    """The record of a run, once it is finished, with a progress line until then. Ctrl-C cancels it on the server.

    Raises ServerError when the server no longer has the run (it was restarted, or its queue and history were cleared).
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..comfy_client.client import ServerError

    with Progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()) as bar:
        task, lost = bar.add_task(printable(title)), 0
        try:
            while (record := server.history(number)) is None:
                ahead = server.queue_position(number)
                lost = lost + 1 if ahead is None else 0  # once: it may have ended between the two questions
                if lost > LOST_POLLS:
                    raise ServerError(
                        f"{server.url}: the run {number} is neither queued nor running nor in the history; the server "
                        "was restarted, or its queue and history were cleared"
                    )
                status = {None: "", 0: "  running"}.get(ahead, f"  waiting for {ahead} before it")
                bar.update(task, description=printable(title + status))
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            server.cancel(number)
            raise
    return record
