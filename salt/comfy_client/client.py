"""HTTP client of a running ComfyUI server: queues a prompt, follows its run and downloads the results.

Uses the routes of ComfyUI's own server: /object_info, /prompt, /queue, /interrupt, /history and /view.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from ..io.atomic import atomic_write
from .workflow import Prompt

REQUEST_TIMEOUT = 60.0  # seconds to connect, and between two parts of an answer
MAX_ANSWER_BYTES = 256 * 2**20  # of an answer kept in memory: /object_info of a large installation has tens of MiB
MAX_RESULT_BYTES = 64 * 2**30  # of a result, which goes to disk as it arrives
CHUNK_BYTES = 2**20
MAX_MESSAGE_LENGTH = 600  # characters of a server's message


class ServerError(RuntimeError):
    """A request that the server refused or could not fulfil, with its own message, on one line."""

    __module__ = "salt.comfy_client.client"


class RequestRefused(ServerError):
    """An HTTP error status. body: the server's answer, as far as it is needed for a message."""

    def __init__(self, status: str, body: bytes) -> None:
        super().__init__(status)
        self.body = body


@dataclass(frozen=True)
class Result:
    """A file that a run left on the server."""

    name: str
    subfolder: str
    kind: str  # "output", or "temp" for previews


class ComfyServer:
    """A running ComfyUI at `url`. Every method raises ServerError if no server answers there."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        self.session = requests.Session()

    def request(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The answer to a GET, or to a POST of `body` as JSON. Raises RequestRefused for an HTTP error status."""
        return b"".join(self._stream(path, MAX_ANSWER_BYTES, body=body))

    def _stream(
        self, path: str, limit: int, *, body: dict[str, Any] | None = None, query: dict[str, str] | None = None
    ) -> Iterator[bytes]:
        """The answer in parts, at most `limit` bytes in all."""
        method, received = "GET" if body is None else "POST", 0
        try:
            with self.session.request(
                method, self.url + path, params=query, json=body, timeout=REQUEST_TIMEOUT, stream=True
            ) as response:
                if not response.ok:
                    message = next(response.iter_content(CHUNK_BYTES), b"")
                    raise RequestRefused(f"HTTP status {response.status_code} {response.reason}", message)
                for part in response.iter_content(CHUNK_BYTES):
                    received += len(part)
                    if received > limit:
                        raise ServerError(f"{self.url}{path}: the answer has more than {limit} bytes")
                    yield part
        except requests.RequestException as error:
            raise ServerError(f"{self.url}: no ComfyUI server answers there ({_root_cause(error)})") from None

    def get_json(self, path: str) -> Any:
        """The JSON at `path`. Raises ServerError for anything else (another program answers at the URL)."""
        try:
            return json.loads(self.request(path))
        except (RequestRefused, ValueError) as error:
            raise ServerError(f"{self.url}{path}: not an answer of ComfyUI ({error})") from None

    def node_info(self) -> dict[str, Any]:
        """The server's node definitions (/object_info), by node type."""
        return self.get_json("/object_info")

    def queue(self, prompt: Prompt) -> str:
        """Queue a prompt; returns its id. Raises ServerError with the server's message if it is rejected."""
        try:
            answer = json.loads(self.request("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex}))
        except RequestRefused as error:
            raise ServerError(f"the server rejects the workflow: {rejection(error.body, prompt)}") from None
        if answer.get("node_errors"):  # the server would run the valid outputs and silently skip the others
            self.cancel(answer["prompt_id"])
            raise ServerError(f"the server rejects the workflow: {'; '.join(node_errors(answer, prompt))}")
        return answer["prompt_id"]

    def queue_position(self, prompt_id: str) -> int | None:
        """Number of runs before this one: 0 while it runs, None when it is no longer queued."""
        queue = self.get_json("/queue")
        if any(item[1] == prompt_id for item in queue["queue_running"]):
            return 0
        waiting = [item[1] for item in sorted(queue["queue_pending"], key=lambda item: item[0])]
        return len(queue["queue_running"]) + waiting.index(prompt_id) if prompt_id in waiting else None

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The record of a finished run; None before. Raises ServerError if the run failed or was cancelled."""
        record = self.get_json(f"/history/{prompt_id}").get(prompt_id)
        status = (record or {}).get("status") or {}
        for event, details in status.get("messages", []):
            if event == "execution_error":
                message = " ".join(str(details["exception_message"]).split())[:MAX_MESSAGE_LENGTH]
                raise ServerError(f"node {details['node_id']} ({details['node_type']}): {message}")
            if event == "execution_interrupted":
                raise ServerError("the run was cancelled on the server")
        return record

    def cancel(self, prompt_id: str) -> None:
        """Remove a run from the queue, or interrupt it if it is running."""
        running = self.queue_position(prompt_id) == 0
        self.request("/queue", {"delete": [prompt_id]})
        if running:
            self.request("/interrupt", {"prompt_id": prompt_id})

    def download(self, result: Result, folder: Path) -> Path:
        """Save a result's file in `folder`, under a name that is still free there; returns its path."""
        query = {"filename": result.name, "subfolder": result.subfolder, "type": result.kind}
        plain = Path(result.name).name  # the server's name may contain a path, which must not leave the folder
        path, copy = folder / plain, 1
        while path.exists():
            copy += 1
            path = folder / f"{Path(plain).stem} ({copy}){Path(plain).suffix}"
        try:
            with atomic_write(path) as partial, partial.open("wb") as file:
                for part in self._stream("/view", MAX_RESULT_BYTES, query=query):
                    file.write(part)
        except RequestRefused as error:
            raise ServerError(f"{result.name}: the server does not return it ({error})") from None
        return path


def _root_cause(error: BaseException) -> BaseException:
    """The system's own error below those of the HTTP libraries."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def rejection(body: bytes, prompt: Prompt) -> str:
    """The server's message about a prompt that it rejects, as one line."""
    try:
        answer = json.loads(body)
    except ValueError:
        return " ".join(body.decode(errors="replace").split())[:MAX_MESSAGE_LENGTH]
    error = answer.get("error") or {}
    message = error if isinstance(error, str) else f"{error.get('message', '')} {error.get('details', '')}".strip()
    return "; ".join(node_errors(answer, prompt)) or message


def node_errors(answer: dict[str, Any], prompt: Prompt) -> list[str]:
    """One line for every node of a prompt in which the server finds errors."""
    lines = []
    for node_id, faulty in (answer.get("node_errors") or {}).items():
        node_type = prompt.get(node_id, {}).get("class_type", faulty.get("class_type"))
        errors = [f"{e.get('message', '')}: {e.get('details', '')}".strip(" :") for e in faulty.get("errors", [])]
        lines.append(" ".join(f"node {node_id} ({node_type}): {', '.join(errors)}".split()))
    return lines


def results(record: dict[str, Any]) -> Iterator[Result]:
    """The files that a run saved; if there are none, its previews."""
    files = [
        Result(item["filename"], item.get("subfolder", ""), item.get("type", "output"))
        for outputs in record.get("outputs", {}).values()
        for items in outputs.values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and item.get("filename")
    ]
    saved = [file for file in files if file.kind == "output"]
    yield from dict.fromkeys(saved or files)
