"""The pack as ComfyUI's registry publishes it: what git has, without what .comfyignore leaves out."""

import os
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


def train(pack: Path, python: str) -> Path:
    """One short update of salt-tiny in the copy, with this Python and nothing else on its path. Returns the student."""
    small = ["updates=1", "critic_per_generator=1", "batch=1", "micro_batch=1"]
    settings = [*(f"optimisation.{s}" for s in small), "rollout.frames=3", "run.tracker=none", "run.sample_every=0"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [python, "-m", "train", "distill", "tiny", *settings]
    done = subprocess.run(command, cwd=pack, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return pack / "runs/tiny/export/tiny.safetensors"
