"""The ComfyUI extension: the list of its nodes. A missing dependency leaves out the nodes that need it."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

log = logging.getLogger(__name__)

# Each has a list NODES.
NODE_MODULES = (
    *(f"nodes_{name}" for name in ("loaders", "tiny", "sampling", "rollout", "policy", "memory", "decode")),
    *("nodes_diagnostics", "live.nodes_rollout_to_video", "live.nodes_live"),
)


def nodes_of(module: str) -> list[type[io.ComfyNode]]:
    """The nodes of one module; none, and a line in the log, where a package that it imports is missing."""
    try:
        return list(importlib.import_module(f".{module}", __name__).NODES)
    except ImportError as error:
        log.warning("Salt: the nodes of %s are left out (%s: %s)", module, type(error).__name__, error)
        return []


class SaltExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for module in NODE_MODULES for node in nodes_of(module)]


async def comfy_entrypoint() -> SaltExtension:
    """What ComfyUI calls once, before it adds its own routes; `on_load` is called in newer versions only.

    Raises ImportError with the command that installs the requirements, where one of them is missing.
    """
    try:
        from .adapter.queued_prompt import keep_graph
        from .adapter.routes import add_routes
        from .adapter.running import prompt_server

        if (server := prompt_server()) is not None:
            add_routes(server)
            server.add_on_prompt_handler(keep_graph)
    except ImportError as error:
        requirements = Path(__file__).parents[1] / "requirements.txt"
        command = f'"{sys.executable}" -m pip install -r "{requirements}"'
        raise ImportError(f"Salt: {error}. To install what is missing into ComfyUI's Python: {command}") from error
    return SaltExtension()
