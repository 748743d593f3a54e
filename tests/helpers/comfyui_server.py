"""A real ComfyUI server as a process of its own, with the pack in its custom_nodes and tiny stand-in models."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from salt.comfy_client.client import ComfyServer, ServerError
from salt.comfy_client.workflow import Prompt
from workflows.maker.templates import WORKFLOWS

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "comfyui"
COLORS = re.compile(r"\x1b\[[0-9;]*m")
# From here on Nodes 2.0 draws widgets that a node gets while it runs, and the page leaves out the nodes of a subgraph
# that is muted or bypassed. 0.8 does neither; versions in between have not been tried.
NEWER_PAGE = (0, 27, 0)
RUN_TIMEOUT = 600.0  # seconds for a run of stand-in models


def environment() -> dict[str, str]:
    """Of a process in ComfyUI's Python. The repository root on PYTHONPATH would hide ComfyUI's `nodes`."""
    comfyui = str(Path(os.environ["COMFYUI_PATH"]).resolve())
    return {**os.environ, "COMFYUI_PATH": comfyui, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}


def make_bare_folder(base: Path) -> Path:
    """A base directory for ComfyUI with the pack alone, which has a model of its own."""
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (base / name).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text('{"Comfy.TutorialCompleted": true}')  # no dialog of templates over the page when it first opens
    (base / "custom_nodes" / "ComfyUI-Salt").symlink_to(ROOT, target_is_directory=True)
    return base


def make_base_folder(base: Path) -> Path:
    """A base directory for ComfyUI: the pack, thin encoders, stand-ins for the released models, an image to load."""
    shutil.copytree(TESTS / "shrunk_encoders", make_bare_folder(base) / "custom_nodes" / "shrunk_encoders")
    shutil.copy(Path(os.environ["COMFYUI_PATH"]) / "input" / "example.png", base / "input")
    command = [os.environ["COMFYUI_PYTHON"], "-m", "salt_cases.stand_in_models", str(base)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return base


class LocalServer(ComfyServer):
    """A server started in `base` (see `make_base_folder`); with ComfyServer's methods."""

    def __init__(self, base: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}")
        self.base, self.log_file = base, base / f"server_{port}.log"
        command = [os.environ["COMFYUI_PYTHON"], "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--base-directory", str(base)],
                cwd=os.environ["COMFYUI_PATH"], env=environment(), stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + 180
        while True:
            try:
                self.get_json("/queue")
                return
            except ServerError:
                assert self.process.poll() is None and time.monotonic() < until, self.log[-3000:]
                time.sleep(0.3)

    @property
    def log(self) -> str:
        return COLORS.sub("", self.log_file.read_text(errors="replace"))

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.get_json("/system_stats")["system"]["comfyui_version"].split(".")[:3])

    @property
    def rss(self) -> int:
        """Bytes of resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    def run(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt to its end; the record. Raises ServerError where it fails."""
        return self.wait_for(self.queue(prompt))

    def wait_for(self, number: str) -> dict[str, Any]:
        until = time.monotonic() + RUN_TIMEOUT
        while (record := self.history(number)) is None:
            assert self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < until, f"{number} still runs after {RUN_TIMEOUT:g} s"
            time.sleep(0.1)
        return record

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """As kill -9, or a power cut, would have it."""
        self.process.kill()
        self.process.wait()


def twin(name: str) -> Prompt:
    """The API-format file of a workflow."""
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def template(name: str) -> Path:
    """A workflow's file for the browser, by the name of its API-format file."""
    return ROOT / "workflows" / f"{WORKFLOWS[name].title}.json"


def small(prompt: Prompt, seconds: float = 1.5, side: int = 32) -> Prompt:
    """The same workflow for a clip that a CPU makes in a moment: 32x32, two or three blocks."""
    smaller = {"width": side, "height": side, "seconds": seconds, "length": 21}
    for node in prompt.values():
        inputs = node["inputs"]
        inputs |= {name: value for name, value in smaller.items() if isinstance(inputs.get(name), (int, float))}
    return prompt
