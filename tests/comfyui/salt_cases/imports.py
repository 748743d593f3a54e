"""What the pack's import adds to the modules of a ComfyUI that has started."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from . import startup


def packages() -> set[str]:
    """Names of the packages that are loaded, and of torch's parts, apart from Python's own and this pack."""
    parts = [name.split(".") for name in sys.modules if not name.startswith("/")]
    return {".".join(p[: 2 if p[0] == "torch" else 1]) for p in parts} - sys.stdlib_module_names


def added() -> list[str]:
    """What ComfyUI's import of the pack and of its nodes loads beside what ComfyUI has loaded for its own nodes."""
    startup.start()
    import nodes  # ComfyUI's, with its loaders and samplers

    before = packages()
    pack = startup.enter(Path(tempfile.mkdtemp()))
    extension = asyncio.run(pack.comfy_entrypoint())
    made = asyncio.run(extension.get_node_list())
    assert made and all(node.GET_SCHEMA().node_id for node in made) and nodes.NODE_CLASS_MAPPINGS
    return sorted(packages() - before)


if __name__ == "__main__":
    result = added()
    from comfyui_version import __version__

    print("RESULT " + json.dumps({"comfyui": __version__, "result": result}))
