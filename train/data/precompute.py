"""Prompt embeddings, start images and clips, computed once before a run.

Resumable: files that exist are kept. Several processes (torchrun) share the work; the files are those of one process.
"""

from __future__ import annotations

from pathlib import Path

import torch

from salt.errors import InputError
from salt.io.prompt_files import read_prompts
from salt.models.text_encoder import UMT5TextEncoder
from train.config.downloads import with_download
from train.config.recipe import Recipe, RecipeError
from train.config.validation import check_prompt_file, check_settings
from train.data.clip_cache import set_aside
from train.data.cost import announce, embedding_cost
from train.data.encode_images import precompute_start_images
from train.data.encode_videos import encode_videos
from train.data.prompts import embeddings_cache
from train.data.shards import own_shards, with_progress
from train.data.trajectories import generate_clips

PROMPTS_AT_A_TIME = 8


def precompute_embeddings(prompts: list[str], text: str, out: str, device: str) -> int:
    """Embed this process's share of the prompts that the folder `out` lacks; returns how many.

    text: folder of the text encoder.
    """
    if not Path(text or "/nonexistent").is_dir():
        raise InputError("text", f"found no such folder {text!r}, expected text_encoder/ and tokenizer/ in it")
    encoder = embeddings_cache(lambda: UMT5TextEncoder.from_pretrained(text, device=device), out, text)
    distinct = list(dict.fromkeys(prompts))
    paths = [encoder.path(prompt) for prompt in distinct]
    for prompt, path in zip(distinct, paths, strict=True):
        if reason := encoder.fault(prompt):
            set_aside(path, reason)
    announce("data.embeddings", out, paths, *embedding_cost(), exact=False)
    written = 0
    for shard in with_progress(own_shards(paths, PROMPTS_AT_A_TIME), out):
        written += sum(not paths[i].exists() for i in shard)
        encoder.encode([distinct[i] for i in shard])
    return written


def precompute_recipe(recipe: Recipe, pictures: Path | None, videos: Path | None, device: str) -> list[str]:
    """Compute everything that the recipe's `data` names; returns a line for each, saying how many were new."""
    done, data = [], recipe.data
    if pictures is not None and not data.images:
        raise InputError(
            "images", f"has no effect without data.images, the folder of encoded pictures: found {pictures}"
        )
    if videos is not None and (not recipe.reads_clips or recipe.stage == "ode"):
        raise InputError("videos", f"has no effect on {recipe.name}, which reads no clips of videos: found {videos}")
    if data.embeddings:
        if recipe.models.text == "words":
            raise RecipeError("data.embeddings", "has no effect with models.text=words, whose words need no encoder")
        if not Path(recipe.models.text or "/nonexistent").is_dir():
            problem = f"found no such folder {recipe.models.text!r}, expected text_encoder/ in it"
            raise RecipeError("models.text", with_download(problem, recipe.models.text))
        check_prompt_file(Path(data.prompts))
        prompts = [*read_prompts(Path(data.prompts)), data.negative]
        new = precompute_embeddings(prompts, recipe.models.text, data.embeddings, device)
        done.append(f"{data.embeddings}: {new} embedded")
    if data.images:
        done.append(f"{data.images}: {precompute_start_images(recipe, pictures, device)} start images")
    if recipe.reads_clips:
        check_settings(recipe)
        if recipe.stage == "ode":
            if not recipe.has_history and data.prompts != "shapes":
                check_prompt_file(Path(data.prompts))
            new = generate_clips(recipe, torch.device(device))
        else:
            new = encode_videos(recipe, videos, torch.device(device))
        done.append(f"{data.clips}: {new} clips")
    if not done:
        raise RecipeError(
            "data", f"found nothing to precompute for {recipe.name}, expected embeddings, images or clips"
        )
    return done
