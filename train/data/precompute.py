"""Prompt embeddings, start images and clips, computed once before a run.

Resumable: files that exist are kept. Several processes (torchrun) share the work; the files are those of one process.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from salt.errors import InputError
from salt.io.atomic import write_tensors
from salt.io.content import content_key, path_digest
from salt.io.images import IMAGE_SUFFIXES
from salt.io.prompt_files import read_prompts
from salt.models.text_encoder import UMT5TextEncoder
from salt.pipeline.components import load_components
from salt.pipeline.start_image import image_channels, image_embeddings, start_pixels
from train.config.recipe import Recipe, RecipeError
from train.config.validation import check_prompt_file, check_settings
from train.data.clip_cache import set_aside, set_aside_stale
from train.data.cost import announce, embedding_cost, start_image_bytes, trajectory_cost
from train.data.encode_videos import encode_videos
from train.data.prompts import embeddings_cache, start_image_path
from train.data.shards import own_shards, with_progress
from train.data.trajectories import clip_count, clip_paths, generate_clips

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


def precompute_start_images(recipe: Recipe, pictures: Path, device: str) -> int:
    """Encode this process's share of the start images, one per prompt line, that `data.images` lacks; returns how many.

    Each has the key of its picture, its prompt, the models and the size; one made from something else is made anew.
    pictures: a folder; the picture of line N is named N (with or without leading zeros), with any suffix that the
    engine reads. Raises InputError, before anything is computed, for a line that has none.
    """
    lines = read_prompts(Path(recipe.data.prompts))
    named = {
        int(p.stem): p for p in sorted(pictures.iterdir()) if p.stem.isdigit() and p.suffix.lower() in IMAGE_SUFFIXES
    }
    without = [i for i in range(len(lines)) if i not in named]
    if without:
        raise InputError("images", f"found no picture of prompt line {without[0]} in {pictures}, expected one a line")
    out, r = recipe.data.images, recipe.rollout
    paths = [start_image_path(Path(out), i) for i in range(len(lines))]
    folders = [Path(recipe.models.text) / part for part in ("vae", "image_encoder", "image_processor")]
    shared = content_key([path_digest(folder) for folder in folders], r.frames, r.height, r.width)
    keys = {path: content_key(shared, path_digest(named[i]), lines[i]) for i, path in enumerate(paths)}
    shapes = {"image": (None, None), "channels": (None, r.frames, r.height, r.width)}
    set_aside_stale(keys, shapes)
    announce("data.images", out, paths, start_image_bytes(recipe), 0)
    shards = own_shards(paths, 1)
    if not shards:
        return 0
    parts = load_components(recipe.models.text)
    if parts.image_encoder is None or parts.image_processor is None:
        raise RecipeError(
            "models.text", f"found no image_encoder/ in {recipe.models.text!r}, expected Wan I2V's folder"
        )
    for model in (parts.vae, parts.image_encoder):
        nn.Module.to(model, torch.device(device))
    scale = int(parts.vae.config["scale_factor_spatial"])
    for (line,) in with_progress(shards, out):
        pixels = start_pixels(named[line], (r.height * scale, r.width * scale), 1)
        pixels = pixels.to(torch.device(device))
        tensors = {
            "image": image_embeddings(parts.image_encoder, parts.image_processor, pixels)[0],
            "channels": image_channels(parts.vae, pixels, r.frames)[0],
        }
        metadata = {"key": keys[paths[line]], "prompt": lines[line]}
        write_tensors(paths[line], {name: x.bfloat16() for name, x in tensors.items()}, metadata)
    return len(shards)


def precompute_recipe(recipe: Recipe, pictures: Path | None, videos: Path | None, device: str) -> list[str]:
    """Compute everything that the recipe's `data` names; returns a line for each, saying how many were new."""
    done, data = [], recipe.data
    if data.embeddings:
        if recipe.models.text == "words":
            raise RecipeError("data.embeddings", "has no effect with models.text=words, whose words need no encoder")
        if not Path(recipe.models.text or "/nonexistent").is_dir():
            raise RecipeError(
                "models.text", f"found no such folder {recipe.models.text!r}, expected text_encoder/ in it"
            )
        check_prompt_file(Path(data.prompts))
        prompts = [*read_prompts(Path(data.prompts)), data.negative]
        new = precompute_embeddings(prompts, recipe.models.text, data.embeddings, device)
        done.append(f"{data.embeddings}: {new} embedded")
    if data.images:
        if pictures is None:
            raise InputError("images", f"found none, expected a folder of pictures for {data.images}")
        done.append(f"{data.images}: {precompute_start_images(recipe, pictures, device)} start images")
    if recipe.reads_clips:
        check_settings(recipe)
        if recipe.stage == "ode":
            announce("data.clips", data.clips, clip_paths(recipe, clip_count(recipe)), *trajectory_cost(recipe))
            new = generate_clips(recipe, torch.device(device))
        else:
            new = encode_videos(recipe, videos, torch.device(device))
        done.append(f"{data.clips}: {new} clips")
    if not done:
        raise RecipeError(
            "data", f"found nothing to precompute for {recipe.name}, expected embeddings, images or clips"
        )
    return done
