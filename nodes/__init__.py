"""Host 1, ComfyUI: the list of its rooms. A room that cannot be entered is left out with one line in the log."""

from __future__ import annotations

import importlib
import logging

from comfy_api.latest import ComfyExtension, io

log = logging.getLogger(__name__)

# Each has a list NODES.
ROOMS = tuple(
    f"nodes_{name}" for name in ("loaders", "tiny", "sampling", "rollout", "policy", "memory", "decode", "diagnostics")
)


def nodes_of(room: str) -> list[type[io.ComfyNode]]:
    """The nodes of one room, or none (and a line in the log) where something it needs is missing."""
    try:
        return list(importlib.import_module(f".{room}", __name__).NODES)
    except (ImportError, AttributeError) as error:
        log.warning("Salt: the nodes of %s are left out (%s: %s)", room, type(error).__name__, error)
        return []


class SaltExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for room in ROOMS for node in nodes_of(room)]


async def comfy_entrypoint() -> SaltExtension:
    return SaltExtension()
