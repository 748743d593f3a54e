"""What the prompts of a run lack is said before the run starts, and errors of any process are shown."""

import pytest

from tests.helpers import tiny_recipes, tiny_system
from train.__main__ import main
from train.config.loader import load_recipe
from train.config.recipe import RecipeError
from train.config.validation import check_recipe
from train.data.precompute import precompute_embeddings, precompute_recipe


def prompt_recipe(folder, lines, **sections):
    (folder / "p.txt").write_text("\n".join(lines))
    data = dict(prompts=str(folder / "p.txt")) | sections.pop("data", {})
    return tiny_recipes.recipe(folder, data=data, **sections)


def test_missing_embeddings_are_counted_before_the_run(tmp_path):
    lines = [f"a red circle {i}" for i in range(40)]
    tiny_system.umt5(tmp_path / "parts")
    precompute_embeddings([*lines[:10], ""], str(tmp_path / "parts"), str(tmp_path / "emb"), "cpu")
    sections = dict(data=dict(embeddings=str(tmp_path / "emb")))
    recipe = prompt_recipe(tmp_path, lines, models=dict(text="/nowhere"), **sections)
    with pytest.raises(
        RecipeError, match="data.embeddings: found no embedding of 30 of 41 prompts .*'a red circle 10'"
    ):
        check_recipe(recipe)
    check_recipe(prompt_recipe(tmp_path, lines[:10], models=dict(text="/nowhere"), **sections))
    check_recipe(prompt_recipe(tmp_path, lines, models=dict(text=str(tmp_path / "parts")), **sections))


def test_unknown_words_are_found_before_the_run(tmp_path):
    recipe = prompt_recipe(tmp_path, ["a red circle", "a red house", "a pink circle"])
    with pytest.raises(RecipeError, match=r"p.txt: found 2 of 3 prompts .* 'house' \(line 2\), 'pink' \(line 3\)"):
        check_recipe(recipe)
    with pytest.raises(RecipeError, match="data.negative cannot be used .*'blurry'"):
        check_recipe(prompt_recipe(tmp_path, ["a red circle"], data=dict(negative="blurry")))


def test_embeddings_of_words_are_refused_as_such(tmp_path):
    recipe = prompt_recipe(tmp_path, ["a red circle"], data=dict(embeddings=str(tmp_path)))
    for check in (check_recipe, lambda r: precompute_recipe(r, None, None, "cpu")):
        with pytest.raises(RecipeError, match="data.embeddings has no effect with models.text=words"):
            check(recipe)
    missing = prompt_recipe(tmp_path, ["a"], data=dict(embeddings=str(tmp_path)), models=dict(text="nowhere"))
    with pytest.raises(RecipeError, match="models.text: found no such folder 'nowhere'"):
        precompute_recipe(missing, None, None, "cpu")


@pytest.mark.parametrize(
    "override, hint",
    [
        ("lr=1e-5", "lr is no known key, did you mean optimisation.lr"),
        ("loss.lr=1e-5", "loss.lr is no known key, did you mean optimisation.lr"),
        ("seed=1", "seed is no known key, did you mean run.seed"),
        ("optimisation.lrr=1", "optimisation.lrr is no known key, did you mean lr"),
    ],
)
def test_a_key_without_its_section_is_found(override, hint):
    with pytest.raises(RecipeError, match=hint):
        load_recipe("tiny", [override])


@pytest.mark.parametrize("rank, start", [("0", "error: rollout"), ("3", "error: process 3: rollout")])
def test_an_error_of_any_process_is_shown(monkeypatch, capsys, rank, start):
    monkeypatch.setenv("RANK", rank)
    assert main(["distill", "tiny", "rollout.frames=7"]) == 2
    assert capsys.readouterr().err.startswith(start)
