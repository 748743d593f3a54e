"""Encodes videos into `data.clips`, real clips: captioned files, or scenes of the Shapes world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.errors import InputError
from salt.io.atomic import write_tensors
from salt.io.content import content_key, path_digest
from salt.io.prompt_files import read_text
from salt.io.video import read_video
from salt.io.video_frames import VIDEO_SUFFIXES, video_info
from salt.models.streaming_vae import encode_video
from salt.spec import FPS
from train.config.model_configs import student_fps
from train.config.recipe import Recipe, RecipeError
from train.config.vae_config import LatentScale, latent_scale
from train.data.clip_cache import metadata_of, set_aside, set_aside_stale
from train.data.cost import announce, clip_bytes
from train.data.shards import own_shards, with_progress
from train.rollout.random_draws import generator_for
from train.shapes.world import random_scenes, render


@dataclass(frozen=True)
class Source:
    """A clip to encode. name: of its file; key: of what it is made from; pixels: reads [1, 3, T, H, W]."""

    name: str
    key: str
    caption: str
    pixels: Callable[[], Tensor]
    file: str = ""


def encode_videos(recipe: Recipe, videos: Path | None, device: torch.device) -> int:
    """Write this process's share of the clips that `data.clips` still lacks; returns how many.

    videos: a folder of `NAME.mp4` (or another kind of video) with captions in `NAME.txt`, each cut into clips of the
    recipe's length and size, at the student's rate; None: `start.clips` scenes of the Shapes world, where
    `data.prompts` is `shapes`.
    A clip's key is the content of its video, its caption, the autoencoder, the size and the rate: what changes is made
    anew, and the clips of the folder's videos that it replaces are moved to `unused/`.
    Raises InputError for a video without a caption; ValueError, naming the file, for one too short or unreadable.
    """
    scale = latent_scale(recipe.models.vae)
    if scale is None:
        problem = f"found no config.json in a folder {recipe.models.vae!r}, expected the autoencoder"
        raise RecipeError("models.vae", problem)
    folder, r = Path(recipe.data.clips), recipe.rollout
    shared = content_key(path_digest(recipe.models.vae), r.frames, r.height, r.width, recipe.optimisation.precision)
    if videos is None:
        found = _scenes(recipe, shared, scale)
    else:
        found = _videos(recipe, videos, shared, scale)
        _set_aside_replaced(folder, videos, {s.name for s in found})
    by_path = {folder / f"{s.name}.safetensors": s for s in found}  # a copy of a video is the same clip
    paths, sources = list(by_path), list(by_path.values())
    set_aside_stale({path: s.key for path, s in by_path.items()}, {"latents": (None, r.frames, r.height, r.width)})
    announce("data.clips", recipe.data.clips, paths, clip_bytes(recipe, scale.channels), 0)
    shards = own_shards(paths, 1)
    if not shards:
        return 0
    vae = AutoencoderKLWan.from_pretrained(recipe.models.vae, torch_dtype=torch.float32).requires_grad_(False)
    nn.Module.to(vae, device)
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else torch.float32
    for (i,) in with_progress(shards, recipe.data.clips):
        latents = encode_video(vae, sources[i].pixels().to(device))[0]
        metadata = {"prompt": sources[i].caption, "key": sources[i].key, "source": sources[i].file}
        write_tensors(paths[i], {"latents": latents.to(dtype)}, metadata)
    return len(shards)


def _set_aside_replaced(folder: Path, videos: Path, wanted: set[str]) -> None:
    """Move to `unused/` the clips of this folder of videos (or of an unknown one) that are not wanted any more."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem in wanted:
            continue
        metadata = metadata_of(path)
        if metadata is None or not metadata.get("source"):
            set_aside(path, "is of no known video")
        elif Path(metadata["source"]).parent == videos.resolve():
            set_aside(path, f"its video, caption or settings have changed ({metadata['source']})")


def _scenes(recipe: Recipe, shared: str, scale: LatentScale) -> list[Source]:
    if recipe.data.prompts != "shapes":
        raise InputError("videos", "found none, expected a folder of NAME.mp4 with captions in NAME.txt")
    return [_scene(recipe, i, shared, scale) for i in range(recipe.start.clips)]


def _scene(recipe: Recipe, i: int, shared: str, scale: LatentScale) -> Source:
    generator = generator_for(recipe.run.seed, "scene", i)
    (scene,) = random_scenes(1, generator)
    key = content_key(shared, recipe.run.seed, scene.caption)
    frames = scale.pixel_frames(recipe.rollout.frames)
    return Source(f"{i:06d}", key, scene.caption, lambda: render([scene], frames, generator).pixels)


def _videos(recipe: Recipe, folder: Path, shared: str, scale: LatentScale) -> list[Source]:
    if not folder.is_dir():
        raise InputError("videos", f"found no such folder {folder}, expected NAME.mp4 with captions in NAME.txt")
    named = (p for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES)
    paths = [p.resolve() for p in named if not p.name.startswith(".") and p.is_file()]
    if not paths:
        raise InputError("videos", f"found no video in {folder}, expected one of {', '.join(VIDEO_SUFFIXES)}")
    return [source for path in paths for source in _clips_of(recipe, path, shared, scale)]


def _clips_of(recipe: Recipe, path: Path, shared: str, scale: LatentScale) -> list[Source]:
    """The clips of a video at the student's rate, one behind the other; the rest at its end is left out."""
    caption = path.with_suffix(".txt")
    text = " ".join(read_text(caption, "the caption of a video").split()) if caption.is_file() else ""
    if not text:
        raise InputError("videos", f"found no caption of {path}, expected one in {caption}")
    frames = scale.pixel_frames(recipe.rollout.frames)
    size = (recipe.rollout.height * scale.spatial, recipe.rollout.width * scale.spatial)
    content, fps = path_digest(path), student_fps(recipe)
    rate = () if fps == FPS else (fps,)  # keys of clips at the usual rate stay as they were without it

    def clip(number: int) -> Source:
        key = content_key(shared, content, text, number, *rate)
        start = number * frames / fps
        return Source(key, key, text, lambda: read_video(path, size, frames, start=start, fps=fps), str(path))

    return [clip(number) for number in range(max(1, video_info(path, fps).frames // frames))]
