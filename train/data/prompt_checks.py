"""Checks of a run's prompts before it starts: words that salt-tiny does not know, and embeddings that are missing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from salt.io.prompt_files import read_prompts
from salt.models.text_encoder import CachedTextEncoder
from salt.models.word_embedder import WordEmbedder
from train.config.recipe import Recipe, RecipeError
from train.data.clip_dataset import ClipDataset
from train.data.prompts import EMBEDDINGS_KEY, umt5


def check_prompts(recipe: Recipe) -> None:
    """Raise RecipeError where a prompt of the run cannot be encoded. The recipe's files are there."""
    data, field = recipe.data, "data.prompts"
    if recipe.stage != "distill":
        prompts, field = ClipDataset(recipe).prompts, "data.clips"
    elif data.prompts == "shapes":
        prompts = []  # captions of the Shapes world, which has salt-tiny's words
    else:
        prompts = read_prompts(Path(data.prompts))
    if recipe.models.text == "words":
        check_words(prompts, field)
        check_words([data.negative], "data.negative")
    elif data.embeddings and not Path(recipe.models.text).is_dir():
        _check_embeddings(recipe, [*prompts, data.negative])


def check_words(prompts: list[str], field: str) -> None:
    """Raise RecipeError about `field` for prompts with a word that salt-tiny does not know, or with too many words."""
    words, wrong = WordEmbedder(dim=1), []
    for number, prompt in enumerate(prompts, 1):
        try:
            words.words(prompt)
        except ValueError as error:
            wrong.append(f"prompt {number}: {error}")
    if wrong:
        more = f"; {len(wrong)} of {len(prompts)} prompts cannot be used" if wrong[1:] else ""
        raise RecipeError(field, f"cannot be used with models.text=words ({wrong[0]}{more})")


def _check_embeddings(recipe: Recipe, prompts: list[str]) -> None:
    folder = recipe.data.embeddings
    encoder = CachedTextEncoder(partial(umt5, recipe), folder, EMBEDDINGS_KEY)
    distinct = list(dict.fromkeys(prompts))
    missing = [p for p in distinct if not encoder.path(p).is_file()]
    if missing:
        raise RecipeError(
            "data.embeddings",
            f"found no embedding of {len(missing)} of {len(distinct)} prompts in {folder} (the first: "
            f"{missing[0][:60]!r}), and models.text, which would make them, is no folder: {recipe.models.text!r}",
        )
