"""What finished commands say comes next: lines that the command lines accept, with the files that were written."""

import shlex
from pathlib import Path

import pytest

from salt.cli import parser as salt_parser
from train.__main__ import main
from train.__main__ import parser as train_parser
from train.config.loader import load_recipe
from train.next_commands import after_distill, after_evaluate


def commands(lines):
    """The arguments of every `next: ...` line, parsed as its program parses them."""
    found = []
    for line in lines:
        if line.startswith("next: "):
            program, *arguments = shlex.split(line.removeprefix("next: "))[2:]
            found.append({"train": train_parser, "salt.cli": salt_parser}[program]().parse_args(arguments))
    return found


def test_a_student_is_scored_shown_and_copied(tmp_path, monkeypatch):
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "any name"
    pack.mkdir(parents=True)
    monkeypatch.chdir(pack)
    student = Path("runs/a b/export/a b.safetensors")
    lines = after_distill(load_recipe("tiny_salt"), student)
    scored, shown = commands(lines)
    assert (scored.student, scored.bench) == (student, ["shapes"])
    assert (shown.model, str(shown.parts), shown.out) == (str(student), "salt-tiny", Path("a b.mp4"))
    assert f"copy {student} to {tmp_path / 'ComfyUI/models/diffusion_models'}," in lines[-1]


def test_a_wan_student_is_scored_with_the_recipes_prompts_and_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, student = load_recipe("self_forcing_salt"), Path("s.safetensors")
    assert "--parts" not in "".join(after_distill(recipe, student)), "parts that were pulled, without the folder"
    (tmp_path / recipe.models.text / "vae").mkdir(parents=True)
    scored, shown = commands(after_distill(recipe, student))
    assert (scored.bench, str(scored.prompts)) == (["defect", "drift"], recipe.data.prompts)
    assert str(scored.parts) == str(shown.parts) == recipe.models.text
    assert after_evaluate(student, "a prompt", "")[-1] == (
        "ComfyUI: copy s.safetensors to models/diffusion_models, press R and choose it in Load Salt Student"
    )
    (shown,) = commands(after_distill(load_recipe("i2v_sc"), student))
    assert str(shown.image) == "start.png", "an image-to-video student starts from a picture"
    (scored, _) = commands(after_distill(load_recipe("t2v"), student))
    assert scored.bench == ["defect"], "drift is of blocks"


@pytest.mark.parametrize(
    ("name", "there", "following"),
    [
        (
            "causal_forcing_tf",
            ("data/videos", "data/causal_ode"),
            ["distill causal_forcing_cd", "precompute causal_forcing_ode"],
        ),
        ("causal_forcing_tf", (), ["precompute causal_forcing_cd --videos", "precompute causal_forcing_ode"]),
        ("longlive2_i2v_tf", (), ["precompute longlive2_i2v --images"]),
        ("tiny_ode", (), ["distill RECIPE models.student=runs/tiny_ode/export/tiny_ode.safetensors"]),
    ],
)
def test_an_initial_student_is_what_other_recipes_start_with(tmp_path, monkeypatch, name, there, following):
    """there: folders that have clips or pictures already."""
    monkeypatch.chdir(tmp_path)
    for folder in there:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "000000.safetensors").touch()
    lines = after_distill(load_recipe(name), Path(f"runs/{name}/export/{name}.safetensors"))
    assert len(commands(lines)) == len(following)
    assert lines == [f"next: python -m train {line}{' FOLDER' * ('--' in line)}" for line in following]


def test_precomputed_data_and_a_dry_run_are_followed_by_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.data.precompute.precompute_recipe", lambda *_: ["clips"])
    assert main(["precompute", "tiny_tf", "start.clips=8", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == ["clips", "next: python -m train distill tiny_tf start.clips=8"]
    (tmp_path / "my.txt").write_text("a prompt\n")
    monkeypatch.setattr("train.data.precompute.precompute_embeddings", lambda *_: 1)
    assert main(["precompute", str(tmp_path / "my.txt"), "--out", "e", "--device", "cpu"]) == 0
    assert f"distill RECIPE data.prompts={tmp_path / 'my.txt'} data.embeddings=e" in capsys.readouterr().out
