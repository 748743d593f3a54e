"""Training from the pack's folder with ComfyUI's own Python, and the way of the trained file back into a graph."""

import subprocess

import pytest

from tests.comfyui.conftest import PYTHON
from tests.helpers import registry_copy


def test_a_student_trained_in_the_pack_s_folder_is_loaded_and_sampled(tmp_path, inside, monkeypatch):
    assert PYTHON
    if subprocess.run([PYTHON, "-c", "import matplotlib, tensorboard"], capture_output=True).returncode:
        pytest.skip("requirements-train.txt is not installed in ComfyUI's Python")
    pack = registry_copy.unpack(tmp_path / "custom_nodes" / "any name 1.0")
    monkeypatch.setenv("SALT_TRAINED", str(registry_copy.train(pack, PYTHON)))
    found = inside("tiny", "trained")
    assert found["latents"][:2] == [1, 16] and found["latents"][3:] == [8, 8] and found["finite"]
