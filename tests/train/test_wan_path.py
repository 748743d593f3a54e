"""The path of docs/training.md for Wan, line by line, on small random models in the layouts of the real ones.

`wan_path.OVERRIDES` lists what is not run as it is written.
"""

import re
import sys
from pathlib import Path

import pytest

from salt.checkpoints import read_checkpoint
from salt.io.video import read_video
from tests.helpers import documented_path, wan_hub, wan_path
from train.config.loader import load_recipe
from train.config.validation import missing_files

DOWNLOAD = re.compile(r"hf download .*")


def test_every_override_is_of_a_line():
    assert wan_path.unused() == []


@pytest.mark.slow
def test_from_prompts_to_an_exported_student(tmp_path):
    pack, programs = documented_path.new_comfyui(tmp_path), wan_hub.make(tmp_path)
    downloads, said = [], ""
    for line in wan_path.lines(wan_path.MAIN):
        said += documented_path.run(line, pack, sys.executable, programs)
        downloads += DOWNLOAD.findall(line)
    assert set(downloads) == set(DOWNLOAD.findall(said)), "the dry run names what the page downloads"
    assert len(list((pack / "data/embeddings").iterdir())) == 3  # with the negative prompt
    assert {"defect.json", "drift.json"} <= {p.name for p in (pack / "outputs").iterdir()}
    assert read_video(pack / "fox.mp4").shape == (1, 3, 81, 32, 32)
    spec = read_checkpoint(pack / "runs/self_forcing_salt/export/self_forcing_salt.safetensors").spec
    assert spec is not None and spec.frames_per_block == 3 and spec.shift == 5


def download(recipes: list[str], pack: Path, programs: Path) -> None:
    """Run the commands that the errors about the recipes' missing files name."""
    for recipe in recipes:
        for error in missing_files(load_recipe(recipe)):
            for line in DOWNLOAD.findall(error.problem):
                documented_path.run(line, pack, sys.executable, programs)


@pytest.mark.slow
def test_initial_students_and_image_to_video(tmp_path, monkeypatch):
    pack, programs = documented_path.new_comfyui(tmp_path), wan_hub.make(tmp_path)
    monkeypatch.chdir(pack)
    wan_path.write_own_files(pack)
    lines = [*wan_path.lines(wan_path.INITIAL), *wan_path.lines(wan_path.IMAGES)]
    download(re.findall(r"distill (\w+)", "\n".join(lines)), pack, programs)
    for line in lines:
        documented_path.run(line, pack, sys.executable, programs)
    for stage in ("self_forcing_ode", "causal_forcing_tf", "causal_forcing_ode", "causal_forcing_cd"):
        assert read_checkpoint(Path(f"runs/{stage}/export/{stage}.safetensors")).spec is not None
