"""Missing files of a recipe: each error has the command that downloads the file to the path that the recipe names."""

import re
from pathlib import Path

import pytest

from train.__main__ import main
from train.config.downloads import download_command
from train.config.loader import RECIPES, load_recipe
from train.config.recipe import RecipeError
from train.config.validation import check_recipe, missing_files

ROOT = Path(__file__).parents[2]
WAN = [p.stem for p in sorted(RECIPES.glob("*.yaml")) if not p.stem.startswith("tiny")]


@pytest.mark.parametrize("name", WAN)
def test_everything_missing_has_a_command_that_creates_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    errors = missing_files(load_recipe(name))
    assert errors and all(len(str(error)) <= 400 for error in errors)
    for error in errors:
        if error.field == "data.prompts" and "i2v" in name:
            continue  # prompts of one's own pictures
        found = re.search(
            r"hf download (\S+) (\S+ )?--local-dir (\S+)|python -m train (precompute|distill)", str(error)
        )
        assert found, error
        if found[1]:
            path = (Path(found[3]) / (found[2] or "").strip()).as_posix()
            assert path in str(error).partition(": hf download")[0]
    with pytest.raises(RecipeError, match=rf"{len(errors) - 1} more missing, all are listed by --dry-run") as first:
        check_recipe(load_recipe(name))
    assert len(str(first.value)) <= 400


def test_commands_fit_the_path():
    assert download_command("/data/Wan2.1-T2V-14B/vae") == (
        "hf download Wan-AI/Wan2.1-T2V-14B-Diffusers --local-dir /data/Wan2.1-T2V-14B-Diffusers"
    )
    command = "hf download zhuhz22/Causal-Forcing framewise/causal_ode.pt --local-dir checkpoints"
    assert download_command("checkpoints/framewise/causal_ode.pt") == command
    assert download_command("checkpoints/mine.pt") == download_command("") == ""
    documented = (ROOT / "docs/training.md").read_text()
    for path in ("checkpoints/Wan2.1-T2V-1.3B-Diffusers", "checkpoints/ode_init.pt"):
        assert download_command(path) in documented


def test_the_hubs_other_layout_is_named(tmp_path):
    folder = tmp_path / "Wan2.1-T2V-1.3B"
    folder.mkdir()
    (folder / "Wan2.1_VAE.pth").touch()
    recipe = load_recipe("self_forcing", [f"models.text={folder}", f"models.vae={folder}"])
    errors = {error.field: str(error) for error in missing_files(recipe)}
    for field in ("models.text", "models.vae"):
        assert f"found Wan's own layout in '{folder}', expected diffusers'" in errors[field]
        assert errors[field].endswith(f"hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --local-dir {folder}-Diffusers")


@pytest.mark.parametrize(
    ("arguments", "download"),
    [
        (["self_forcing_ode"], "data.prompts cannot be used .*: hf download gdhe17/Self-Forcing vidprom"),
        (["self_forcing_salt", "data.embeddings=e"], "models.text: .*: hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    ],
)
def test_what_precompute_lacks_is_named_with_its_download(arguments, download, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["precompute", *arguments, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert re.search(download, said) and len(said) < 400, said


def test_prompts_are_missing_where_trajectories_are_computed_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fields(name):
        return {error.field for error in missing_files(load_recipe(name))}

    assert "data.prompts" in fields("self_forcing_ode") and "data.prompts" not in fields("causal_forcing_ode")
    (tmp_path / "data/ode").mkdir(parents=True)
    assert "data.prompts" not in fields("self_forcing_ode"), "the clips have their captions"
