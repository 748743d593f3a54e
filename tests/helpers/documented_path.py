"""The commands of docs/training.md, read from the page and run line by line, as a newcomer types them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.helpers import registry_copy

PAGE = registry_copy.ROOT / "docs" / "training.md"
SECONDS = 600  # at most, for a line


def lines(section: str) -> list[str]:
    """The lines of the section's shell blocks, without comments; continued ones are one."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    joined = (line for language, block in blocks if not language for line in block.replace("\\\n", " ").splitlines())
    return [line.partition("  #")[0].strip() for line in joined]


def new_comfyui(folder: Path) -> Path:
    """A folder laid out as ComfyUI's, with the registry's copy of the pack; returns the pack's folder."""
    (folder / "models" / "diffusion_models").mkdir(parents=True)
    return registry_copy.unpack(folder / "custom_nodes" / "any name 1.0")


def run(line: str, folder: Path, python: str, programs: Path | None = None) -> str:
    """What the line prints in this folder, with this Python (and its torchrun) and nothing else on its path.

    programs: a folder with programs that stand in for others.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    folders = [*([str(programs)] if programs else []), str(Path(python).parent), environment["PATH"]]
    environment["PATH"] = os.pathsep.join(folders)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    return done.stdout


def first_run(comfyui: Path, python: str, *parts: str) -> Path:
    """Runs the lines of "First run" that begin with one of `parts`; returns the file that ComfyUI is given."""
    pack = new_comfyui(comfyui)
    for line in lines("First run"):
        if line.startswith(parts):
            run(line, pack, python)
    (given,) = (comfyui / "models" / "diffusion_models").iterdir()
    return given
