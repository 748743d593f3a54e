"""The house's messenger to a running ComfyUI: hands a prompt in, asks how it goes, brings the results home.

Plain HTTP as ComfyUI's own server speaks it (/prompt, /queue, /history, /view); nothing but the standard library.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.atomic import atomic_write
from .workflow import Prompt

PATIENCE = 60.0  # seconds that one answer may take
LONGEST = 600  # characters of a server's words


class ServerError(RuntimeError):
    """What a server refused or could not do, in its own words, on one line."""


@dataclass(frozen=True)
class Result:
    """A file that a run left on the server."""

    name: str
    subfolder: str
    kind: str  # "output", or "temp" for previews


class ComfyServer:
    """A running ComfyUI at `url`. Every method raises ServerError where nobody answers there."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"

    def ask(self, path: str, body: Any = None) -> bytes:
        """GET, or POST where there is a body. urllib.error.HTTPError (a refusal) goes through to the caller."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} if data else {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise ServerError(f"{self.url}: found no ComfyUI there ({why}), expected one running") from None

    def read(self, path: str) -> Any:
        """The JSON at `path`. Raises ServerError for an answer that is none (something else runs there)."""
        try:
            return json.loads(self.ask(path))
        except (urllib.error.HTTPError, ValueError) as error:
            raise ServerError(f"{self.url}{path}: found {error}, expected ComfyUI's answer") from None

    def info(self) -> dict[str, Any]:
        """What the server says of its nodes."""
        return self.read("/object_info")

    def queue(self, prompt: Prompt) -> str:
        """Hand a prompt in; its id. Raises ServerError with the server's words where it is rejected."""
        try:
            answer = json.loads(self.ask("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex}))
        except urllib.error.HTTPError as error:
            raise ServerError(f"the server rejects the workflow: {rejection(error.read(), prompt)}") from None
        if answer.get("node_errors"):  # some outputs are good and run; the rest would be missed in silence
            self.cancel(answer["prompt_id"])
            raise ServerError(f"the server rejects the workflow: {'; '.join(node_errors(answer, prompt))}")
        return answer["prompt_id"]

    def ahead(self, number: str) -> int | None:
        """How many runs come before this one: 0 while it runs itself, None when it is no longer queued."""
        queue = self.read("/queue")
        if any(item[1] == number for item in queue["queue_running"]):
            return 0
        waiting = [item[1] for item in sorted(queue["queue_pending"], key=lambda item: item[0])]
        return len(queue["queue_running"]) + waiting.index(number) if number in waiting else None

    def history(self, number: str) -> dict[str, Any] | None:
        """The record of a run that is over, whichever way; None before. Raises ServerError where it failed."""
        record = self.read(f"/history/{number}").get(number)
        status = (record or {}).get("status") or {}
        for event, told in status.get("messages", []):
            if event == "execution_error":
                words = " ".join(str(told["exception_message"]).split())[:LONGEST]
                raise ServerError(f"node {told['node_id']} ({told['node_type']}): {words}")
            if event == "execution_interrupted":
                raise ServerError("the run was cancelled on the server")
        return record

    def cancel(self, number: str) -> None:
        """Take a run off the queue, or stop it where it runs."""
        running = self.ahead(number) == 0
        self.ask("/queue", {"delete": [number]})
        if running:
            self.ask("/interrupt", {"prompt_id": number})

    def fetch(self, result: Result, folder: Path) -> Path:
        """A result's file, under a name that is still free in `folder`."""
        query = {"filename": result.name, "subfolder": result.subfolder, "type": result.kind}
        try:
            content = self.ask("/view?" + urllib.parse.urlencode(query))
        except urllib.error.HTTPError as error:
            raise ServerError(f"{result.name}: the server does not hand it out ({error})") from None
        plain = Path(result.name).name  # whatever path a server may state, the file lands in the folder
        path, copy = folder / plain, 1
        while path.exists():
            copy += 1
            path = folder / f"{Path(plain).stem} ({copy}){Path(plain).suffix}"
        with atomic_write(path) as partial:
            partial.write_bytes(content)
        return path


def rejection(body: bytes, prompt: Prompt) -> str:
    """What a server says of a prompt that it does not take, as one line."""
    try:
        answer = json.loads(body)
    except ValueError:
        return " ".join(body.decode(errors="replace").split())[:LONGEST]
    error = answer.get("error") or {}
    words = error if isinstance(error, str) else f"{error.get('message', '')} {error.get('details', '')}".strip()
    return "; ".join(node_errors(answer, prompt)) or words


def node_errors(answer: dict[str, Any], prompt: Prompt) -> list[str]:
    """A line for every fault that a server finds in the nodes of a prompt."""
    lines = []
    for number, found in (answer.get("node_errors") or {}).items():
        kind = prompt.get(number, {}).get("class_type", found.get("class_type"))
        faults = [f"{e.get('message', '')}: {e.get('details', '')}".strip(" :") for e in found.get("errors", [])]
        lines.append(" ".join(f"node {number} ({kind}): {', '.join(faults)}".split()))
    return lines


def results(record: dict[str, Any]) -> Iterator[Result]:
    """The files that a run left: those it saved, else its previews."""
    found = [
        Result(item["filename"], item.get("subfolder", ""), item.get("type", "output"))
        for outputs in record.get("outputs", {}).values()
        for items in outputs.values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and item.get("filename")
    ]
    saved = [r for r in found if r.kind == "output"]
    yield from dict.fromkeys(saved or found)
