"""A ComfyUI server with this pack, and a Chromium with its page: what the scripts that take pictures share.

Needs COMFYUI_PATH (a checkout of ComfyUI), COMFYUI_PYTHON (its environment's interpreter), Chromium and playwright. The
server and the page are those of the browser tests (`tests/helpers`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"


def require_host() -> None:
    """End the program with one line where ComfyUI, Chromium or playwright is missing."""
    missing = [name for name in ("COMFYUI_PATH", "COMFYUI_PYTHON") if not os.environ.get(name)]
    if missing:
        sys.exit(f"set {' and '.join(missing)}: a ComfyUI checkout, and the python of its environment")
    if find_spec("playwright") is None:
        sys.exit("playwright is not installed: pip install playwright")
    from tests.helpers.comfyui_page import CHROMIUM

    if CHROMIUM is None:
        sys.exit("no chromium on the PATH")


@contextmanager
def comfy_page(*named: str) -> Iterator:
    """A `tests.helpers.comfyui_page.ComfyPage` of a fresh server, with the current node design and no side panels.

    named: paths below ComfyUI's folder, of empty files that loaders list.
    """
    require_host()
    from tests.helpers.comfyui_page import ComfyPage, chromium
    from tests.helpers.comfyui_server import LocalServer, make_bare_folder

    with tempfile.TemporaryDirectory() as folder:
        base = make_bare_folder(Path(folder))
        for path in map(base.joinpath, named):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        server = LocalServer(base)
        try:
            with chromium() as browser:
                page = ComfyPage(browser, server.url)
                for setting, value in {
                    "Comfy.VueNodes.Enabled": True,
                    "Comfy.Minimap.Visible": False,
                    "Comfy.Graph.CanvasInfo": False,
                    "Comfy.Graph.CanvasMenu": False,
                    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
                    "Comfy.Workflow.WorkflowTabsPosition": "Topbar",
                }.items():
                    page.setting(setting, value)
                yield page
                page.close()
        finally:
            server.stop()
