"""The path of docs/training.md, line by line, in the registry's copy of the pack within a folder like ComfyUI's."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from salt.checkpoints import load_student, read_checkpoint, save_diffusers
from salt.io.video import read_video
from tests.helpers import documented_path, tiny_recipes, tiny_system

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


# What a CPU cannot hold or do in the lines of "With Wan 2.1 on GPUs". `stand_ins` writes what is downloaded: random
# models of the same layouts, small, at the paths that the page names. The launcher is the one that the page has for a
# CPU. Small settings are added to what trains or makes a clip.
SMALL = (
    "rollout.frames=6 rollout.height=4 rollout.width=4 optimisation.batch=2 optimisation.updates=1 "
    "optimisation.critic_per_generator=1 run.sample_prompts=1"
)
INSTEAD = {
    "hf download": "true",
    "accelerate launch --num_processes 8": "torchrun --standalone --nproc_per_node 2",
    "-m train distill self_forcing_salt data": f"-m train distill self_forcing_salt {SMALL} data",
    "--bench defect drift": "--bench defect drift --frames 3 --steps 1",
    "salt.cli generate": "salt.cli generate --frames 9 --width 32 --height 32 --nfe 2",
}


def stand_ins(pack: Path) -> None:
    checkpoints, prompts = pack / "checkpoints", pack / "prompts"
    small = [tiny_recipes.model(seed, text_dim=32, num_layers=layers) for seed, layers in enumerate((2, 21, 2))]
    folder = tiny_system.umt5(checkpoints / "Wan2.1-T2V-1.3B-Diffusers")
    tiny_system.vae().save_pretrained(folder / "vae")
    save_diffusers(small[0], folder / "transformer")
    save_diffusers(small[1], checkpoints / "Wan2.1-T2V-14B-Diffusers" / "transformer")  # aligned on its block 20
    weights = {f"model.{name}": x for name, x in small[2].state_dict().items()}
    torch.save({"generator": weights}, checkpoints / "ode_init.pt")
    prompts.mkdir()
    (prompts / "vidprom_filtered_extended.txt").write_text("a red circle\na circle moving right\n")


@pytest.mark.slow
def test_the_path_of_wan_line_by_line_on_stand_ins(tmp_path):
    pack = documented_path.new_comfyui(tmp_path)
    stand_ins(pack)
    used = set()
    for line in documented_path.lines("With Wan 2.1 on GPUs"):
        for words, others in INSTEAD.items():
            if words in line:
                used.add(words)
                line = others if others == "true" else line.replace(words, others)
        documented_path.run(line, pack, sys.executable)
    assert used == set(INSTEAD)
    assert len(list((pack / "data/embeddings").iterdir())) == 3  # with the negative prompt
    assert (pack / "outputs/defect.json").is_file() and (pack / "outputs/drift.json").is_file()
    assert read_video(pack / "fox.mp4").shape[2] == 9
