"""The model card's own commands."""

import re
import shlex

from salt import cli
from salt.checkpoints import load_student, save_wan
from salt.io.hub_parts import PARTS
from salt.io.video import read_video
from salt.spec import TINY_FOLDER
from train.config.loader import load_recipe
from train.config.model_configs import WAN_5B, backbones
from train.export import model_card
from train.models import student_spec


def commands(recipe):
    config = backbones(recipe)["student"]
    block = re.search(r"```\n(.*?)\n```", model_card(recipe, student_spec(recipe), 1, {}, config), re.DOTALL)
    return [shlex.split(line) for line in block[1].splitlines()]


def test_the_command_of_a_shapes_world_student_makes_a_video(tmp_path, monkeypatch):
    recipe = load_recipe("tiny_relative_salt", ["rollout.shift=3"])
    student = load_student(TINY_FOLDER / "transformer")
    save_wan(student, tmp_path / f"{recipe.name}.safetensors", spec=student_spec(recipe))
    monkeypatch.chdir(tmp_path)
    ((program, *arguments),) = commands(recipe)
    assert program == "salt" and cli.main([*arguments, "--frames", "9", "-o", "clip.mp4"]) == 0
    assert read_video(tmp_path / "clip.mp4").shape[2] == 9


def test_the_commands_of_wan_students_fetch_what_generating_needs():
    pull, generate = commands(load_recipe("self_forcing_salt"))
    assert pull[:2] == ["salt", "pull"] and set(pull[2:]) <= set(PARTS)
    assert {PARTS[name].folder for name in pull[2:]} == {"text_encoder", "tokenizer", "vae"}
    assert generate == ["salt", "generate", "a prompt", "--model", "self_forcing_salt.safetensors"]
    download, generate = commands(load_recipe("i2v"))
    assert generate[-1] == download[-1] and generate[-4:-2] == ["--image", "start.png"]
    pull, generate = commands(load_recipe("causal_forcing_i2v"))
    assert pull[:2] == ["salt", "pull"] and generate[-2:] == ["--image", "start.png"]
    longlive2 = load_recipe("longlive2")
    pull, _ = commands(longlive2)
    assert pull[-1] == "wan22-vae" and "wan2.2" in model_card(longlive2, student_spec(longlive2), 1, {}, WAN_5B)
