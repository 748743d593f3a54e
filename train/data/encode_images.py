"""Encodes the start images of image-to-video training into `data.images`: pictures of prompt lines, or drawn scenes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.errors import InputError
from salt.io.atomic import write_tensors
from salt.io.content import content_key, path_digest
from salt.io.images import IMAGE_SUFFIXES
from salt.io.prompt_files import read_prompts
from salt.models.streaming_vae import encode_video
from salt.pipeline.components import load_components
from salt.pipeline.start_image import image_channels, image_embeddings, start_pixels
from train.config.model_configs import config_of
from train.config.recipe import Recipe, RecipeError
from train.config.vae_config import latent_scale
from train.data.clip_cache import Shapes, set_aside_stale
from train.data.cost import announce, start_image_bytes
from train.data.shards import own_shards, with_progress
from train.data.start_images import start_image_path
from train.rollout.random_draws import generator_for
from train.shapes.world import random_scenes, render


@dataclass(frozen=True)
class Picture:
    """The start image of a prompt. key: of what it is made from; pixels: [1, 3, 1, H, W] at a size (H, W)."""

    prompt: str
    key: str
    pixels: Callable[[tuple[int, int]], Tensor]


def precompute_start_images(recipe: Recipe, pictures: Path | None, device: str) -> int:
    """Encode this process's share of the start images, one per prompt line, that `data.images` lacks; returns how many.

    Each has the key of its picture, its prompt, the models and the size; one made from something else is made anew.
    pictures: a folder; the picture of line N is named N (with or without leading zeros), with any suffix that the
    engine reads. None: the first frames of `start.clips` scenes of the Shapes world, where `data.prompts` is `shapes`.
    Raises InputError, before anything is computed, for a line that has none.
    """
    found = _scenes(recipe) if pictures is None else _pictures(recipe, pictures)
    student = config_of(recipe.models.student, "models.student")
    out, r, channels = recipe.data.images, recipe.rollout, student["out_channels"]
    paths = [start_image_path(Path(out), i) for i in range(len(found))]
    beside = student["in_channels"] > channels  # image-to-video: the picture goes beside the noise
    shapes: Shapes = {"latent": (channels, 1, r.height, r.width)}
    if beside:
        shared = content_key([path_digest(f) for f in _i2v_folders(recipe)], r.frames, r.height, r.width)
        shapes = {"image": (None, None), "channels": (None, r.frames, r.height, r.width)}
    else:
        if latent_scale(recipe.models.vae) is None:
            problem = f"found no config.json in a folder {recipe.models.vae!r}, expected the autoencoder"
            raise RecipeError("models.vae", problem)
        shared = content_key(path_digest(recipe.models.vae), "latent", r.height, r.width)
    keys = {path: content_key(shared, picture.key, picture.prompt) for path, picture in zip(paths, found, strict=True)}
    set_aside_stale(keys, shapes)
    announce("data.images", out, paths, start_image_bytes(recipe, student), 0)
    shards = own_shards(paths, 1)
    if not shards:
        return 0
    encode = (_beside_noise if beside else _first_latent)(recipe, torch.device(device))
    for (line,) in with_progress(shards, out):
        metadata = {"key": keys[paths[line]], "prompt": found[line].prompt}
        write_tensors(paths[line], {name: x.bfloat16() for name, x in encode(found[line]).items()}, metadata)
    return len(shards)


def _pictures(recipe: Recipe, folder: Path) -> list[Picture]:
    if recipe.data.prompts == "shapes":
        raise InputError("images", f"has no effect with data.prompts=shapes, whose pictures are drawn: found {folder}")
    if not folder.is_dir():
        raise InputError(
            "images", f"found no such folder {folder}, expected one picture per prompt line, named by line"
        )
    lines = read_prompts(Path(recipe.data.prompts))
    files = (p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES)
    named = {int(p.stem): p for p in files if re.fullmatch("[0-9]{1,9}", p.stem)}
    without = [i for i in range(len(lines)) if i not in named]
    if without:
        raise InputError("images", f"found no picture of prompt line {without[0]} in {folder}, expected one a line")

    def picture(line: int) -> Picture:
        return Picture(lines[line], path_digest(named[line]), lambda size: start_pixels(named[line], size, 1))

    return [picture(line) for line in range(len(lines))]


def _scenes(recipe: Recipe) -> list[Picture]:
    if recipe.data.prompts != "shapes":
        raise InputError("images", f"found none, expected a folder of pictures for {recipe.data.images}")

    def picture(number: int) -> Picture:
        generator = generator_for(recipe.run.seed, "start image", number)
        (scene,) = random_scenes(1, generator)
        return Picture(scene.caption, f"seed {recipe.run.seed}", lambda _: render([scene], 1, generator).pixels)

    return [picture(number) for number in range(recipe.start.clips)]


def _i2v_folders(recipe: Recipe) -> list[Path]:
    return [Path(recipe.models.text) / part for part in ("vae", "image_encoder", "image_processor")]


def _beside_noise(recipe: Recipe, device: torch.device) -> Callable[[Picture], dict[str, Tensor]]:
    """What an image-to-video model sees of a picture, by the VAE and the image encoder of `models.text`."""
    r, parts = recipe.rollout, load_components(recipe.models.text)
    encoder, processor = parts.image_encoder, parts.image_processor
    if encoder is None or processor is None:
        problem = f"found no image_encoder/ in {recipe.models.text!r}, expected Wan I2V's folder"
        raise RecipeError("models.text", problem)
    for model in (parts.vae, encoder):
        nn.Module.to(model, device)

    def encode(picture: Picture) -> dict[str, Tensor]:
        pixels = picture.pixels(pixel_size(recipe, parts.vae)).to(device)
        image = image_embeddings(encoder, processor, pixels)[0]
        return {"image": image, "channels": image_channels(parts.vae, pixels, r.frames)[0]}

    return encode


def _first_latent(recipe: Recipe, device: torch.device) -> Callable[[Picture], dict[str, Tensor]]:
    """The first latent frame of a text-to-video model's clip, by `models.vae`."""
    vae = AutoencoderKLWan.from_pretrained(recipe.models.vae, torch_dtype=torch.float32).requires_grad_(False)
    nn.Module.to(vae, device)
    return lambda picture: {"latent": encode_video(vae, picture.pixels(pixel_size(recipe, vae)).to(device))[0]}


def pixel_size(recipe: Recipe, vae: AutoencoderKLWan) -> tuple[int, int]:
    """Rows and columns of the recipe's clips."""
    scale = int(vae.config["scale_factor_spatial"])
    return recipe.rollout.height * scale, recipe.rollout.width * scale
