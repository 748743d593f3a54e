"""`python -m train`: what it imports before it knows what to do, and launchers that start too few processes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import registry_copy
from train.__main__ import main

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from train.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print(json.dumps([code, sorted(sys.modules)]))
"""


@pytest.mark.parametrize(
    "arguments, said, not_imported",
    [
        (["distill", "tiny_salt", "--mdoe", "ddp"], "unrecognized arguments: --mdoe", {"torch"}),
        (["precompute"], "required: source", {"torch"}),
        (["evaluate", "student", "--bench", "shape"], "invalid choice: 'shape'", {"torch"}),
        (["tiny", "--stage", "vea"], "invalid choice: 'vea'", {"torch"}),
        (["nothing"], "invalid choice: 'nothing'", {"torch"}),
        (["distill", "tiny_salt", "--mode", "single", "loss.gudance=2"], "did you mean guidance", {"accelerate"}),
        (["distill", "tiny_salt", "--dry-run", "nonsense"], "unrecognized arguments: nonsense", {"torch"}),
    ],
)
def test_an_argument_mistake_is_said_before_slow_imports(arguments, said, not_imported):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 2 and said in done.stderr
    slow = {"diffusers", "transformers", "matplotlib", "tensorboard"} | not_imported
    assert not slow & set(modules)
    assert "torch" not in not_imported or "torch.distributed" not in modules


def test_a_python_that_looks_for_no_module_where_it_starts_runs_the_folder(tmp_path):
    """As that of ComfyUI's portable build for Windows, which is isolated by its ._pth file."""
    folder = registry_copy.unpack(tmp_path / "any name") / "train"
    (folder / "recipes" / "of_this_copy.yaml").write_text("# Own\nbase: tiny_first\n")
    command = [sys.executable, "-I", str(folder), "recipes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "of_this_copy" in done.stdout, done.stderr


def test_one_process_in_place_of_several_is_an_error(monkeypatch, capsys):
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process that it starts."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(["distill", "tiny_salt", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "--num_processes: found one process, expected several" in error and "torchrun" in error


def test_missing_packages_are_named_before_anything_is_done(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert main(["recipes"]) == 2
    assert "found no matplotlib" in (said := capsys.readouterr().err) and "requirements-train.txt" in said
