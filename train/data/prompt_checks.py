"""Checks of a run's prompts before it starts: words that salt-tiny does not know, and embeddings that are missing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from salt.io.prompt_files import prompt_lines
from salt.models.word_embedder import WordEmbedder
from train.config.recipe import Recipe, RecipeError
from train.data.clip_dataset import ClipDataset
from train.data.prompts import embeddings_cache, umt5


def check_prompts(recipe: Recipe) -> None:
    """Raise RecipeError where a prompt of the run cannot be encoded. The recipe's files are there."""
    data = recipe.data
    if recipe.reads_clips:
        dataset = ClipDataset(recipe)
        field, where, prompts = "data.clips", data.clips, dict(enumerate(dataset.prompts, 1))
    elif data.prompts == "shapes":
        field, where, prompts = "data.prompts", "", {}  # captions of the Shapes world, which has salt-tiny's words
    else:
        field, where, prompts = "data.prompts", data.prompts, prompt_lines(Path(data.prompts))
    if recipe.models.text == "words":
        check_words(prompts, field, where)
        if data.negative:
            check_words({1: data.negative}, "data.negative", repr(data.negative))
    elif data.embeddings and not Path(recipe.models.text).is_dir():
        _check_embeddings(recipe, [*prompts.values(), data.negative])


def check_words(prompts: dict[int, str], field: str, where: str) -> None:
    """Raise RecipeError about `field` naming every prompt, by line, that salt-tiny's words cannot say."""
    try:
        WordEmbedder(dim=1).check_lines(prompts, where)
    except ValueError as error:
        raise RecipeError(field, f"cannot be used with models.text=words ({error})") from None


def _check_embeddings(recipe: Recipe, prompts: list[str]) -> None:
    folder = recipe.data.embeddings
    encoder = embeddings_cache(partial(umt5, recipe), folder, recipe.models.text)
    distinct = list(dict.fromkeys(prompts))
    missing = [p for p in distinct if not encoder.path(p).is_file()]
    if missing:
        raise RecipeError(
            "data.embeddings",
            f"found no embedding of {len(missing)} of {len(distinct)} prompts in {folder} (the first: "
            f"{missing[0][:60]!r}), and models.text, which would make them, is no folder: {recipe.models.text!r}",
        )
