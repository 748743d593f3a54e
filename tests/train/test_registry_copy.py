"""The path of docs/training.md, line by line, in the registry's copy of the pack within a folder like ComfyUI's."""

import sys

import pytest
import yaml

from salt.checkpoints import load_student, read_checkpoint
from salt.io.video import read_video
from tests.helpers import documented_path

SHORT = ("echo", "python -m train distill tiny_first", "cp")


def test_the_shortest_way_from_prompts_to_comfyui(tmp_path):
    given = documented_path.first_run(tmp_path, sys.executable, *SHORT)
    assert len(load_student(given).blocks) == 4
    settings = yaml.safe_load((tmp_path / "custom_nodes/any name 1.0/runs/tiny_first/recipe.yaml").read_text())
    assert settings["data"]["prompts"] == "prompts.txt"


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
    assert "student, 4 steps" in (pack / "outputs/shapebench.md").read_text()
    assert read_video(pack / "first.mp4").shape == (1, 3, 81, 64, 64)
    spec = read_checkpoint(given).spec
    assert spec is not None and spec.frames_per_block == 3 and spec.shift == 5
