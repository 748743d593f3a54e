"""Seeded mutations of every kind of file that is read: each gives a result, or one line that names the file.

`pytest -m slow tests/fuzz`; SALT_FUZZ_COUNT, SALT_FUZZ_SEED and SALT_FUZZ_SECONDS set the number of mutations, their
seed and the time for all.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

from salt import cli
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.mutate import mutate
from tests.helpers import tiny_system
from train.__main__ import main as train

COUNT = int(os.environ.get("SALT_FUZZ_COUNT", "10000"))
SEED = os.environ.get("SALT_FUZZ_SEED", "0")
SECONDS = float(os.environ.get("SALT_FUZZ_SECONDS", "540"))
HANGS_AFTER = 20.0  # seconds
LONGEST_ERROR = 500
LONGEST_LINE = 430  # of the commands: 400 characters after `error: ` and a process's number
# Bytes beyond twice the file's that reading it may take: buffers of the interpreter and its allocators.
MEMORY_SLACK, ADDRESS_SLACK = 48 * 2**20, 2**30


class MemoryWatch:
    """Limits the address space of a block, so that an allocation of what a file claims fails, and measures its RAM.

    Does nothing where the system has no /proc.
    """

    def __init__(self, size: int) -> None:
        self.size, self.works = size, sys.platform == "linux"

    def __enter__(self) -> MemoryWatch:
        if self.works:
            import resource

            self.limits = resource.getrlimit(resource.RLIMIT_AS)
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins at what is held now
            self.before = memory_status("VmRSS")
            most = memory_status("VmSize") + 2 * self.size + ADDRESS_SLACK
            resource.setrlimit(resource.RLIMIT_AS, (most, self.limits[1]))
        return self

    def __exit__(self, *_: object) -> None:
        if self.works:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, self.limits)

    def fault(self) -> str:
        grown = memory_status("VmHWM") - self.before if self.works else 0
        return f"takes {grown:,} bytes of memory for {self.size:,}" if grown > 2 * self.size + MEMORY_SLACK else ""


def memory_status(key: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def fault(path: Path, kind: Kind) -> str:
    """What is wrong with how a file is read; empty where all is well."""
    began, wrong = time.monotonic(), ""
    with MemoryWatch(path.stat().st_size) as memory:
        try:
            kind.read(path)
        except (ValueError, OSError, RuntimeError) as error:
            wrong = error_fault(error, path, kind)
        except Exception as error:  # noqa: BLE001 (what this test looks for)
            wrong = f"traceback: {type(error).__name__}: {error!s:.200}"
    seconds = time.monotonic() - began
    return wrong or memory.fault() or (f"took {seconds:.0f} s" if seconds > HANGS_AFTER else "")


def error_fault(error: Exception, path: Path, kind: Kind) -> str:
    text = f"{type(error).__name__}: {error!s:.200}"
    if kind.heals:
        return f"is not made anew: {text}"
    if "allocate memory" in str(error):
        return f"allocates what the file claims: {text}"
    if str(path.parent) not in str(error) and path.name not in str(error):
        return f"unnamed file: {text}"
    if len(str(error)) > LONGEST_ERROR + len(str(path)):
        return f"an error of {len(str(error))} characters: {text}"
    return ""


def mutated(kind: Kind, folder: Path, rng: random.Random, count: int):
    """The path of the kind's file, mutated anew every time."""
    path = folder / kind.file
    path.parent.mkdir(parents=True, exist_ok=True)
    kind.make(path)
    original = path.read_bytes()
    for _ in range(count):
        if not path.parent.exists():  # a reader has set it aside
            kind.make(path)
        path.write_bytes(original)
        mutate(path, kind.metadata, original, rng)
        yield path


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_mutation_is_a_traceback(name: str, tmp_path: Path) -> None:
    kind, rng = KINDS[name], random.Random(f"{name} {SEED}")
    began, faults, tried = time.monotonic(), {}, 0
    for path in mutated(kind, tmp_path, rng, -(-COUNT // len(KINDS))):
        if time.monotonic() - began > SECONDS / len(KINDS):
            break
        tried += 1
        if found := fault(path, kind):
            faults.setdefault(found[:60], f"mutation {tried}: {found}")
    print(f"{name}: {tried} mutations in {time.monotonic() - began:.0f} s, {len(faults)} kinds of faults")
    assert not faults, "\n".join(faults.values())


CLIP = ("--model", "MODEL", "--nfe", "1", "--frames", "9", "--device", "cpu", "-o", "OUT")
COMMANDS = {  # kind: the command, with FILE for its file
    **dict.fromkeys(("safetensors", "torch", "memory_info", "spec", "shards", "lora"), ("inspect", "FILE")),
    "picture": ("generate", "a", *CLIP[:4], "--frames", "13", *CLIP[6:], "--image", "FILE"),
    "clip_info": ("generate", "a", *CLIP[:4], "--frames", "12", *CLIP[6:], "--extend", "FILE"),
    "prompts": ("generate", *CLIP[:-1], "FOLDER", "--prompts", "FILE"),
    "recipe": ("distill", "FILE", "models.student=nowhere"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_gives_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = {"FILE": tmp_path / "in" / KINDS[name].file, "OUT": tmp_path / "a.mp4", "FOLDER": tmp_path / "clips"}
    places["MODEL"] = tiny_system.folder(tmp_path / "model")
    command = [str(places.get(word, word)) for word in COMMANDS[name]]
    run = train if command[0] == "distill" else cli.main
    rng = random.Random(f"command {name} {SEED}")
    for i, _ in enumerate(mutated(KINDS[name], tmp_path / "in", rng, -(-COUNT // 20 // len(COMMANDS)))):
        code, error = run(command), capfd.readouterr().err
        last = error.splitlines()[-1] if error else ""
        assert code == 0 or (last.startswith("error: ") and len(last) < LONGEST_LINE), f"mutation {i}: {error}"
        assert "Traceback" not in error, error
