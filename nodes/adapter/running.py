"""The rollouts that run now, by the node that runs them, and the request to end one after its block.

ComfyUI's thread runs them; requests come from its server's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .core_versions import executing_node

if TYPE_CHECKING:
    from types import ModuleType

EVENT = "salt_running"  # to the page, whenever `running_nodes` changes
_running: dict[str, RunningRollout] = {}


class RunningRollout:
    """One rollout. node: id of its node as ComfyUI executes it, "" outside of a queued prompt. session: id of its live
    session, if it is one. stopped: whether it is to end after its block."""

    def __init__(self, node: str, session: str, on_stop: Callable[[], None] | None) -> None:
        self.node, self.session, self.stopped, self._on_stop = node, session, False, on_stop

    def stop(self) -> None:
        self.stopped = True
        if self._on_stop is not None:
            self._on_stop()


@contextmanager
def running(session: str = "", on_stop: Callable[[], None] | None = None) -> Iterator[RunningRollout]:
    """While open, the node that is being executed can be stopped, and the page knows it."""
    rollout = RunningRollout(executing_node(), session, on_stop)
    if not rollout.node:
        yield rollout
        return
    _running[rollout.node] = rollout
    tell_page()
    try:
        yield rollout
    finally:
        _running.pop(rollout.node, None)
        tell_page()


def stop_node(node: str) -> bool:
    """Ask the rollout of a node to end after its block. False where none runs."""
    rollout = _running.get(node)
    if rollout is not None:
        rollout.stop()
    return rollout is not None


def running_nodes() -> dict[str, Any]:
    """By node what can be stopped, and its live session, for the page."""
    return {node: {"session": rollout.session, "stopped": rollout.stopped} for node, rollout in list(_running.items())}


def tell_page() -> None:
    """Tell every page of this server what runs."""
    server = prompt_server()
    if server is not None:
        server.send_sync(EVENT, {"nodes": running_nodes()})


def prompt_server() -> Any:
    """ComfyUI's server, None where there is none (tests, other hosts)."""
    import sys

    module: ModuleType | None = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)
