"""The ComfyUI that these tests run in: COMFYUI_PATH (a checkout) and COMFYUI_PYTHON (its environment's interpreter).

ComfyUI has its own environment, so a test starts a module of `salt_cases` in it and reads the figures that it prints.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.comfyui_page import ComfyPage, chromium
from tests.helpers.comfyui_server import LocalServer, make_bare_folder

HERE = Path(__file__).parent
PATH, PYTHON = os.environ.get("COMFYUI_PATH"), os.environ.get("COMFYUI_PYTHON")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [n for n, v in {"COMFYUI_PATH": PATH, "COMFYUI_PYTHON": PYTHON}.items() if not v]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"{' and '.join(missing)} not set"))


@pytest.fixture(scope="session")
def inside() -> Callable[..., Any]:
    """`inside(module, case, flags)`: what a case of `salt_cases.MODULE` returns when it runs in ComfyUI's own Python,
    started with `flags` (none: `--cpu`); warns: the pack may warn. Skips the test where the case returns None."""

    def run(module: str, case: str, *flags: str, warns: bool = False) -> Any:
        assert PATH and PYTHON
        command = [PYTHON, "-m", f"salt_cases.{module}", case, *flags]
        environment = {**os.environ, "COMFYUI_PATH": str(Path(PATH).resolve()), "PYTHONPATH": str(HERE)}
        done = subprocess.run(command, cwd=PATH, env=environment, capture_output=True, text=True, timeout=600)
        answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert done.returncode == 0 and answers, f"{module} {case}:\n{done.stderr[-3000:]}"
        if not warns:
            assert "Salt:" not in done.stderr, "the pack loads and runs without a warning"
        answer = json.loads(answers[-1].removeprefix("RESULT "))
        if answer["result"] is None:
            pytest.skip(f"ComfyUI {answer['comfyui']} does not have what {module} {case} is about")
        print(f"ComfyUI {answer['comfyui']} {case}: {answer['result']}")
        return answer["result"]

    return run


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    serving = LocalServer(make_bare_folder(tmp_path_factory.mktemp("comfyui")))
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser whose camera is a picture of Chromium's own."""
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as started:
        yield started


@pytest.fixture
def comfy(browser: Any, page_server: LocalServer) -> Iterator[ComfyPage]:
    """A fresh page; whatever a test does, our files leave no error in the console."""
    page = ComfyPage(browser, page_server.url)
    page.setting("Comfy.VueNodes.Enabled", False)
    yield page
    page.close()
    assert page.errors == []
