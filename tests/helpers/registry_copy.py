"""The pack as ComfyUI's registry publishes it: what git has, without what .comfyignore leaves out."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def left_out() -> list[str]:
    """Paths that .comfyignore names, folders with their slash."""
    lines = (ROOT / ".comfyignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def unpack(folder: Path) -> Path:
    """Write the registry's copy to `folder`, which is new."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    ignored = tuple(left_out())
    for name in filter(None, found.stdout.split("\0")):
        if name in ignored or name.startswith(tuple(i for i in ignored if i.endswith("/"))):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return folder
