"""Size and cost of what `precompute` is about to compute, before it begins."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salt.io.launcher import is_main_process, process_count
from train.config.model_configs import backbones, meta_model
from train.config.recipe import Recipe, RecipeError

TEXT_ENCODER_PARAMETERS, TOKENS, TEXT_DIM = 5.7e9, 512, 4096  # of Wan's UMT5
IMAGE_TOKENS, IMAGE_DIM = 257, 1280  # of Wan I2V's image encoder
TERAFLOPS = 200  # per second and device, the rate that hours are given for: about half of an H100's in bfloat16


def announce(
    key: str, folder: str, paths: Sequence[Path], bytes_each: int, flops_each: float, exact: bool = True
) -> None:
    """Print how many files `folder` lacks, their size and what they cost to compute.

    exact: bytes_each is no upper bound. Raises RecipeError for `key` where they do not fit on the disk.
    """
    new = sum(not path.exists() for path in paths)
    size, free = new * bytes_each, shutil.disk_usage(_existing(Path(folder))).free
    if exact and size > free:
        problem = f"found {free / 1e9:.1f} GB free for {folder}, expected {size / 1e9:.1f} GB ({new} files)"
        raise RecipeError(key, problem)
    if not new or not is_main_process():
        return
    line = f"{folder}: {new} of {len(paths)} files to compute, {'' if exact else 'at most '}{size / 1e9:.3g} GB"
    if flops := new * flops_each:
        hours = flops / TERAFLOPS / 1e12 / 3600 / process_count()
        line += f", about {flops / 1e15:.3g} PFLOP ({hours:.2g} hours of {process_count()} x {TERAFLOPS} TFLOP/s)"
    print(line, flush=True)


def embedding_cost() -> tuple[int, float]:
    """Bytes (at most: padding is not stored) and floating-point operations of a prompt's embedding."""
    return 2 * TOKENS * TEXT_DIM, 2 * TEXT_ENCODER_PARAMETERS * TOKENS


def start_image_bytes(recipe: Recipe, student: Mapping[str, Any]) -> int:
    """Bytes of a start image's file for a student of this configuration.

    For image-to-video the encoded picture with its mask, and the image encoder's features; else one latent frame.
    """
    beside, channels = student["in_channels"] - student["out_channels"], student["out_channels"]
    if not beside:
        return 2 * channels * recipe.rollout.height * recipe.rollout.width
    return 2 * (_latent_size(recipe, beside) + IMAGE_TOKENS * IMAGE_DIM)


def clip_bytes(recipe: Recipe, channels: int, states: int = 0) -> int:
    """Bytes of a clip's file with a trajectory of so many states."""
    width = 2 if recipe.optimisation.precision == "bf16" else 4
    return width * (1 + states) * _latent_size(recipe, channels)


def trajectory_cost(recipe: Recipe) -> tuple[int, float]:
    """Bytes of a teacher's trajectory, and the floating-point operations of its forwards."""
    config = backbones(recipe)["teacher"]
    guided = 2 if recipe.start.guidance else 1
    forwards = recipe.start.teacher_steps * guided
    both = 1 if recipe.has_history else 0  # the clean clip is stored, and goes through every forward
    size = clip_bytes(recipe, config["out_channels"], max(recipe.rollout.share) + both)
    return size, forwards * forward_flops(config, recipe, (1 + both) * recipe.rollout.frames)


def forward_flops(config: dict[str, object], recipe: Recipe, frames: int) -> float:
    """Floating-point operations of one forward over a whole clip: all weights at every token, and self-attention."""
    model = meta_model(config)
    patch = model.config.patch_size
    tokens = frames * recipe.rollout.height * recipe.rollout.width / math.prod(patch)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    parameters = sum(p.numel() for p in model.parameters())
    return 2 * parameters * tokens + 4 * tokens**2 * width * model.config.num_layers


def _latent_size(recipe: Recipe, channels: int) -> int:
    return channels * recipe.rollout.frames * recipe.rollout.height * recipe.rollout.width


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one around it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
