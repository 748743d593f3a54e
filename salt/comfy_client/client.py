"""HTTP client of a running ComfyUI server: queues a prompt, follows its run and downloads the results.

Uses the routes of ComfyUI's own server: /object_info, /prompt, /queue, /interrupt, /history and /view.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from ..io.atomic import atomic_write
from ..io.fields import FieldError, parse_object, read_fields
from ..io.remote_names import plain_name
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
    """A file that a run left on the server. type: "output", or "temp" for previews."""

    filename: str
    subfolder: str = ""
    type: str = "output"


@dataclass(frozen=True)
class NodeFaults:
    """What the server finds wrong with a node of a prompt."""

    class_type: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Rejected:
    """The answer to a prompt that cannot run as it is. error: a text, or an object with message and details."""

    error: Any = None
    node_errors: dict[str, NodeFaults] | None = None


@dataclass(frozen=True)
class Queued:
    """The answer to a queued prompt."""

    prompt_id: str
    node_errors: dict[str, NodeFaults] | None = None


@dataclass(frozen=True)
class Queue:
    """Runs as [number, prompt id, ...]."""

    queue_running: list[list[Any]]
    queue_pending: list[list[Any]]


@dataclass(frozen=True)
class Status:
    """How a run went. messages: [event, details]."""

    messages: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """A finished run. outputs: by node, then by kind."""

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: Status = Status()


class ComfyServer:
    """A running ComfyUI at `url`. Every method raises ServerError if no server answers there."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"  # a compressed answer can be a thousand times larger

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
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise ServerError(f"{self.url}{path}: the answer is compressed, which was not asked for")
                for part in response.iter_content(CHUNK_BYTES):
                    received += len(part)
                    if received > limit:
                        raise ServerError(f"{self.url}{path}: the answer has more than {limit} bytes")
                    yield part
        except requests.RequestException as error:
            raise ServerError(f"{self.url}: no ComfyUI server answers there ({_root_cause(error)})") from None

    def get_json(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`. Raises ServerError for anything else (another program answers at the URL)."""
        try:
            return parse_object(self.request(path))
        except (RequestRefused, FieldError) as error:
            raise ServerError(f"{self.url}{path}: not an answer of ComfyUI ({error})") from None

    def node_info(self) -> dict[str, Any]:
        """The server's node definitions (/object_info), by node type."""
        return self.get_json("/object_info")

    def queue(self, prompt: Prompt) -> str:
        """Queue a prompt; returns its id. Raises ServerError with the server's message if it is rejected."""
        try:
            body = self.request("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
            answer = read_fields(Queued, parse_object(body))
        except RequestRefused as error:
            raise ServerError(f"the server rejects the workflow: {rejection(error.body, prompt)}") from None
        except FieldError as error:
            raise ServerError(f"{self.url}/prompt: not an answer of ComfyUI ({error})") from None
        if answer.node_errors:  # the server would run the valid outputs and silently skip the others
            self.cancel(answer.prompt_id)
            raise ServerError(f"the server rejects the workflow: {'; '.join(fault_lines(answer.node_errors, prompt))}")
        return answer.prompt_id

    def queue_position(self, prompt_id: str) -> int | None:
        """Number of runs before this one: 0 while it runs, None when it is no longer queued."""
        try:
            queue = read_fields(Queue, self.get_json("/queue"))
        except FieldError as error:
            raise ServerError(f"{self.url}/queue: {error}") from None
        if any(item[1:2] == [prompt_id] for item in queue.queue_running):
            return 0
        numbered = [item for item in queue.queue_pending if len(item) > 1 and isinstance(item[0], (int, float))]
        waiting = [item[1] for item in sorted(numbered, key=lambda item: item[0])]
        return len(queue.queue_running) + waiting.index(prompt_id) if prompt_id in waiting else None

    def history(self, prompt_id: str) -> Record | None:
        """The record of a finished run; None before. Raises ServerError if the run failed or was cancelled."""
        path = f"/history/{prompt_id}"
        found = self.get_json(path).get(prompt_id)
        if found is None:
            return None
        try:
            record = read_fields(Record, found)
        except FieldError as error:
            raise ServerError(f"{self.url}{path}: {error}") from None
        for event, details in (message[:2] for message in record.status.messages if len(message) > 1):
            if event == "execution_error":
                about = details if isinstance(details, dict) else {}
                message = " ".join(str(about.get("exception_message")).split())[:MAX_MESSAGE_LENGTH]
                raise ServerError(f"node {about.get('node_id')!s:.40} ({about.get('node_type')!s:.80}): {message}")
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
        """Save a result's file in `folder`, under a name that is still free there; returns its path.

        Raises ServerError for a name that is none, and for a file above MAX_RESULT_BYTES.
        """
        query = {"filename": result.filename, "subfolder": result.subfolder, "type": result.type}
        try:
            plain = plain_name(result.filename)  # the server's name may contain a path, which must not leave the folder
        except ValueError as error:
            raise ServerError(f"{self.url}: {error}") from None
        path, copy = folder / plain, 1
        while path.exists():
            copy += 1
            path = folder / f"{Path(plain).stem} ({copy}){Path(plain).suffix}"
        try:
            with atomic_write(path) as partial, partial.open("wb") as file:
                for part in self._stream("/view", MAX_RESULT_BYTES, query=query):
                    file.write(part)
        except RequestRefused as error:
            raise ServerError(f"{result.filename}: the server does not return it ({error})") from None
        return path


def _root_cause(error: BaseException) -> BaseException:
    """The system's own error below those of the HTTP libraries."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def rejection(body: bytes, prompt: Prompt) -> str:
    """The server's message about a prompt that it rejects, as one line."""
    try:
        answer = read_fields(Rejected, parse_object(body))
    except FieldError:
        return " ".join(body.decode(errors="replace").split())[:MAX_MESSAGE_LENGTH]
    message = answer.error if isinstance(answer.error, str) else ""
    if isinstance(answer.error, dict):
        message = f"{answer.error.get('message', '')} {answer.error.get('details', '')}".strip()
    return ("; ".join(fault_lines(answer.node_errors or {}, prompt)) or message)[:MAX_MESSAGE_LENGTH]


def fault_lines(faults: dict[str, NodeFaults], prompt: Prompt) -> list[str]:
    """One line for every node of a prompt in which the server finds errors."""
    lines = []
    for node_id, faulty in faults.items():
        node_type = prompt.get(node_id, {}).get("class_type", faulty.class_type)
        errors = [f"{e.get('message', '')}: {e.get('details', '')}".strip(" :") for e in faulty.errors]
        lines.append(" ".join(f"node {node_id} ({node_type}): {', '.join(errors)}".split()))
    return lines


def results(record: Record) -> Iterator[Result]:
    """The files that a run saved; if there are none, its previews. Raises ServerError for a file of a wrong name."""
    items = (
        (node, item)
        for node, outputs in record.outputs.items()
        for listed in outputs.values()
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict) and item.get("filename")
    )
    files = [_result(node, item) for node, item in items]
    saved = [file for file in files if file.type == "output"]
    yield from dict.fromkeys(saved or files)


def _result(node: str, item: dict[str, Any]) -> Result:
    try:
        return read_fields(Result, item)
    except FieldError as error:
        raise ServerError(f"outputs of node {node:.40}: file name: {error}") from None
