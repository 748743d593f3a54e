"""The path of docs/training.md, line by line, in the registry's copy of the pack within a folder like ComfyUI's."""

import sys

import pytest

from salt.checkpoints import load_student, read_checkpoint
from salt.io.video import read_video
from tests.helpers import documented_path, registry_copy
from tests.test_structure import absolute_imports
from train.config.loader import load_recipe
from train.config.validation import missing_files


def test_the_copy_has_all_that_the_first_run_reads(tmp_path, monkeypatch):
    """The modules that it imports, and the files that its recipes name. The slow test below trains."""
    pack = documented_path.new_comfyui(tmp_path)
    assert "tiny_first" in documented_path.run("python -m train recipes", pack, sys.executable)
    for line in documented_path.lines("First run"):
        if line.startswith("echo"):
            documented_path.run(line, pack, sys.executable)
    monkeypatch.chdir(pack)
    for name in ("tiny_first", "tiny_tf"):
        recipe = load_recipe(name, ["data.prompts=prompts.txt"] if name == "tiny_first" else [])
        assert {error.field for error in missing_files(recipe)} <= {"data.clips"}, "which the first run computes"
    ours = {path.name for path in registry_copy.ROOT.iterdir() if path.is_dir()}
    for module in (path for package in ("salt", "nodes", "train") for path in (pack / package).rglob("*.py")):
        assert all((pack / name).exists() for name in absolute_imports(module) & ours), module


def test_the_path_has_every_step():
    text = "\n".join(documented_path.lines("First run"))
    steps = ["echo", "train precompute", "train distill", "torchrun", "train evaluate", "salt.cli generate", "cp "]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


@pytest.mark.slow
def test_the_first_run_line_by_line(tmp_path):
    given = documented_path.first_run(tmp_path, sys.executable, "")
    pack = tmp_path / "custom_nodes" / "any name 1.0"
    assert len(list((pack / "runs/tiny_clips").glob("*.safetensors"))) == 8
    assert len(load_student(pack / "runs/first_tf/export/first_tf.safetensors").blocks) == 4
    assert sorted(p.name for p in (pack / "runs/tiny_first/checkpoints").iterdir())[-1] == "step-00000004"
    assert "prompts: prompts.txt" in (pack / "runs/tiny_first/recipe.yaml").read_text()
    assert "student, 4 steps" in (pack / "outputs/shapebench.md").read_text()
    assert read_video(pack / "first.mp4").shape == (1, 3, 81, 64, 64)
    spec = read_checkpoint(given).spec
    assert spec is not None and spec.frames_per_block == 3 and spec.shift == 5
