"""Encodes videos into `data.clips` for the stage `tf`: captioned files, or scenes of the Shapes world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.errors import InputError
from salt.io.atomic import write_tensors
from salt.io.video import read_video
from salt.models.streaming_vae import encode_video
from train.config.recipe import Recipe, RecipeError
from train.data.clip_dataset import clip_paths
from train.data.cost import announce, clip_bytes
from train.data.shards import own_shards, with_progress
from train.rollout.random_draws import generator_for
from train.shapes.world import random_scenes, render

PIXELS_PER_LATENT = 8  # rows and columns, of Wan's autoencoder
Source = tuple[str, Callable[[], Tensor]]  # caption, pixels [1, 3, T, H, W]


def encode_videos(recipe: Recipe, videos: Path | None, device: torch.device) -> int:
    """Write this process's share of the clips that `data.clips` still lacks; returns how many.

    videos: a folder of `NAME.mp4` with captions in `NAME.txt`, cut to the recipe's length and size from their start;
    None: `start.clips` scenes of the Shapes world, where `data.prompts` is `shapes`.
    Raises InputError for a video without a caption; ValueError, naming the file, for one too short or unreadable.
    """
    if not Path(recipe.models.vae or "/nonexistent").is_dir():
        raise RecipeError("models.vae", f"found no such folder {recipe.models.vae!r}, expected the autoencoder")
    sources = _scenes(recipe) if videos is None else _videos(recipe, videos)
    paths = clip_paths(recipe, len(sources))
    announce("data.clips", recipe.data.clips, paths, clip_bytes(recipe), 0)
    shards = own_shards(paths, 1)
    if not shards:
        return 0
    vae = AutoencoderKLWan.from_pretrained(recipe.models.vae, torch_dtype=torch.float32).requires_grad_(False)
    nn.Module.to(vae, device)
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else torch.float32
    for (i,) in with_progress(shards, recipe.data.clips):
        caption, pixels = sources[i]
        latents = encode_video(vae, pixels().to(device))[0]
        write_tensors(paths[i], {"latents": latents.to(dtype)}, {"prompt": caption})
    return len(shards)


def _pixel_frames(recipe: Recipe) -> int:
    return 4 * (recipe.rollout.frames - 1) + 1


def _scenes(recipe: Recipe) -> list[Source]:
    if recipe.data.prompts != "shapes":
        raise InputError("videos", "found none, expected a folder of NAME.mp4 with captions in NAME.txt")
    return [_scene(recipe, i) for i in range(recipe.start.clips)]


def _scene(recipe: Recipe, i: int) -> Source:
    generator = generator_for(recipe.run.seed, "scene", i)
    (scene,) = random_scenes(1, generator)
    return scene.caption, lambda: render([scene], _pixel_frames(recipe), generator).pixels


def _videos(recipe: Recipe, folder: Path) -> list[Source]:
    paths = sorted(folder.glob("*.mp4"))
    if not paths:
        raise InputError("videos", f"found no mp4 in {folder}")
    return [_video(recipe, path) for path in paths]


def _video(recipe: Recipe, path: Path) -> Source:
    caption = path.with_suffix(".txt")
    text = caption.read_text(encoding="utf-8").strip() if caption.is_file() else ""
    if not text:
        raise InputError("videos", f"found no caption of {path}, expected one in {caption}")
    size = (recipe.rollout.height * PIXELS_PER_LATENT, recipe.rollout.width * PIXELS_PER_LATENT)
    return " ".join(text.split()), lambda: read_video(path, size, _pixel_frames(recipe))
