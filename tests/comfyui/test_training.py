"""The documented path to ComfyUI, from the pack's folder with ComfyUI's own Python, and the trained file in a graph."""

import subprocess
from typing import Any

import pytest

from salt.checkpoints import save_diffusers
from tests.comfyui.conftest import PYTHON
from tests.helpers import documented_path, stage_recipes, tiny_recipes, wan_hub, wan_path
from train.methods.sc_dmd import SCDMDTrainer


def training_python() -> str:
    """ComfyUI's Python; skips the test where it cannot train."""
    assert PYTHON
    if subprocess.run([PYTHON, "-c", "import matplotlib, tensorboard"], capture_output=True).returncode:
        pytest.skip("requirements-train.txt is not installed in ComfyUI's Python")
    return PYTHON


def test_a_student_trained_in_the_pack_s_folder_is_loaded_and_sampled(tmp_path, inside, monkeypatch):
    given = documented_path.first_run(tmp_path, training_python(), "echo", "python -m train distill tiny_first", "cp")
    monkeypatch.setenv("SALT_TRAINED", str(given))
    found = inside("tiny", "trained")
    assert found["latents"][:2] == [1, 16] and found["latents"][3:] == [8, 8] and found["finite"]


@pytest.mark.slow
def test_a_wan_student_trained_by_the_page_s_lines_is_loaded_and_sampled(tmp_path, inside, monkeypatch):
    python, programs = training_python(), wan_hub.make(tmp_path)
    pack = documented_path.new_comfyui(tmp_path)
    for line in wan_path.lines(wan_path.MAIN):
        if line.startswith(("hf", "python -m train precompute", "torchrun")):
            documented_path.run(line, pack, python, programs)
    (given,) = pack.glob("runs/*/export/*.safetensors")
    monkeypatch.setenv("SALT_TRAINED", str(given))
    found = inside("tiny", "trained")
    assert found["latents"][:2] == [1, 16] and found["latents"][3:] == [8, 8] and found["finite"]


def test_students_trained_from_pictures_begin_with_one(tmp_path, inside, monkeypatch):
    few: dict[str, Any] = dict(
        optimisation=dict(batch=1, micro_batch=1, critic_per_generator=1, updates=1),
        loss=dict(semigroup=0.0, align="none"),
    )
    ti2v = tiny_recipes.model(1, in_channels=48, out_channels=48)
    save_diffusers(ti2v, tmp_path / "ti2v")
    wan22 = dict(frames=8, frames_per_block=8, gives_first_frame=True, stepping="unipc", share={4: 1.0})
    recipes = {
        "i2v": stage_recipes.i2v_recipe(tmp_path, rollout=dict(share={4: 1.0}), **few),
        "wan22": stage_recipes.i2v_recipe(
            tmp_path, channels=48, models=dict.fromkeys(("student", "teacher"), str(tmp_path / "ti2v")),
            rollout=wan22 | dict(independent_first_frame=False, memory="shots:8,window:32,offset:8"), **few,
        ),
    }  # fmt: skip
    for name, recipe in recipes.items():
        trainer = SCDMDTrainer(recipe)
        trainer.update(0)
        trainer.export(tmp_path / f"{name}.safetensors")
    monkeypatch.setenv("SALT_TRAINED", str(tmp_path))
    found = inside("tiny", "from_pictures")
    if isinstance(found["i2v"], str):
        assert all(
            said.endswith("too old for a model with freq_dim 32, num_heads 2; 0.27 reads it") for said in found.values()
        )
        pytest.skip(found["i2v"])
    assert found["i2v"][0] == [1, 16, 7, 4, 4] and found["wan22"][0] == [1, 48, 8, 4, 4]
    assert all(error < 1e-6 and finite for _, error, finite in found.values())  # to its own scale of latents and back
