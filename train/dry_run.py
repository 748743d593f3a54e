"""Dry-run recipes: a recipe's own settings with tiny random models in place of its checkpoints.

Layouts stay (channels, image conditioning, which models exist); sizes shrink to what a CPU runs in seconds. The seed is
chosen so that two updates cover every loss of the recipe.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from salt.checkpoints import save_diffusers
from salt.io.atomic import write_tensors, write_text
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.spec import TINY_FOLDER, WAN22_CHANNELS
from train.config.model_configs import backbones
from train.config.recipe import Data, Recipe, Rollouts
from train.methods.sc_dmd_losses import has_alignment
from train.rollout.random_draws import draw_update

DRY_RUN_UPDATES = 2
LATENT_SIZE = 4  # rows and columns: two patches
MAX_LATENT_FRAMES = 30
TRANSFORMER_BLOCKS = 2
PROMPTS = ("a red circle moving right", "a blue square moving up", "a fast purple square moving up")


def dry_run_recipe(recipe: Recipe, folder: Path, processes: int = 1) -> Recipe:
    """A recipe of the same settings for tiny models, whose files are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = backbones(recipe)
    for seed, (name, config) in enumerate(configs.items()):
        save_diffusers(_tiny_model(config, seed, max(recipe.optimisation.sequence, 2)), folder / name)
    models = replace(
        recipe.models, student=str(folder / "student"), teacher=str(folder / "teacher"), critic=str(folder / "critic"),
        text="words", vae=_vae(configs["student"]["out_channels"], folder), weights="auto",
        lora_rank=min(recipe.models.lora_rank, 2),
    )  # fmt: skip
    r, opt = recipe.rollout, recipe.optimisation
    if recipe.streams and r.frames > MAX_LATENT_FRAMES:
        r = _short_stream(r)
    frames = r.frames if r.frames <= MAX_LATENT_FRAMES else _short_clip(r)
    micro = min(opt.micro_batch, 2)
    small = replace(
        recipe,
        models=models,
        data=replace(recipe.data, prompts="shapes", embeddings="", images="", clips="", history="", negative=""),
        rollout=replace(r, frames=frames, height=LATENT_SIZE, width=LATENT_SIZE),
        loss=replace(
            recipe.loss, align_start=0, adversarial_start=0, align_block=TRANSFORMER_BLOCKS - 1,
            reward="pixels:motion" if recipe.loss.reward else "",
        ),
        start=replace(recipe.start, teacher_steps=max(r.share), clips=2),
        optimisation=replace(
            opt, micro_batch=micro, batch=2 * micro * max(processes // (opt.sequence or 1), 1),
            updates=DRY_RUN_UPDATES, ema_start=1,
        ),
        run=replace(
            recipe.run, out=str(folder / "run"), save_every=1, sample_every=1, sample_prompts=1,
            tracker="tensorboard" if recipe.run.tracker == "tensorboard" else "none",  # no network
        ),
    )  # fmt: skip
    if recipe.reads_clips:
        small = replace(small, data=replace(small.data, clips=str(folder / "clips")))
    if recipe.stage != "distill":
        history = _random_clips(small, folder / "history") if recipe.has_history else ""
        return replace(small, data=replace(small.data, history=history))
    if recipe.data.images:
        small = replace(small, data=_random_start_images(small, folder))
    return with_every_loss(small)


def _vae(channels: int, folder: Path) -> str:
    """The folder of an autoencoder with such latents: salt-tiny's, or a random one of Wan 2.2's shape."""
    if channels != WAN22_CHANNELS:
        return str(TINY_FOLDER / "vae")
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=channels, num_res_blocks=1, is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=16, latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    return str(folder / "vae")


def _short_clip(r: Rollouts) -> int:
    """Frames of a shorter clip of the same layout: whole blocks, an independent first frame, the loss window."""
    blocks = max(MAX_LATENT_FRAMES // r.frames_per_block, 1) * r.frames_per_block
    return max(blocks + r.independent_first_frame, r.window + (r.independent_first_frame and r.window < r.frames))


def _short_stream(r: Rollouts) -> Rollouts:
    """Streams of a few chunks of two blocks, the later ones with an overlap where the recipe has one."""
    n = r.frames_per_block
    overlap = n if r.overlap >= n else 0
    return replace(r, window=2 * n, overlap=overlap, frames=5 * n + (1 if r.independent_first_frame else 0))


def with_every_loss(recipe: Recipe) -> Recipe:
    """The recipe with the first seed at which a dry run's updates carry L_SC and the alignment, where it has them."""
    for seed in range(10_000):
        candidate = replace(recipe, run=replace(recipe.run, seed=seed))
        draws = [draw_update(candidate, update, "generator") for update in range(DRY_RUN_UPDATES)]
        semigroup = not recipe.loss.semigroup or any(d.triple for d in draws)
        aligned = recipe.loss.align == "none" or any(
            d.exit_index and has_alignment(candidate, d, update) for update, d in enumerate(draws)
        )
        if semigroup and aligned:
            return candidate
    raise RuntimeError(f"no seed covers every loss of {recipe.name} in {DRY_RUN_UPDATES} updates")


def _tiny_model(config: dict[str, Any], seed: int, heads: int) -> SaltTransformer3DModel:
    torch.manual_seed(seed)
    head_dim = 16
    image: dict[str, Any] = {}
    if config.get("image_dim"):
        image = {"image_dim": 32, "added_kv_proj_dim": heads * head_dim}
    model = SaltTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, ffn_dim=32, num_layers=TRANSFORMER_BLOCKS, freq_dim=32,
        text_dim=4096, in_channels=config["in_channels"], out_channels=config["out_channels"], **image,
    )  # fmt: skip
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.2)  # a fresh head's output is next to zero
    return model


def _random_clips(recipe: Recipe, folder: Path) -> str:
    """A folder of random clean clips, as many as the recipe generates trajectories."""
    r, channels = recipe.rollout, backbones(recipe)["student"]["out_channels"]
    for i in range(recipe.start.clips):
        generator = torch.Generator().manual_seed(i)
        latents = torch.randn(channels, r.frames, r.height, r.width, generator=generator)
        write_tensors(folder / f"{i:06d}.safetensors", {"latents": latents}, {"prompt": PROMPTS[i % len(PROMPTS)]})
    return str(folder)


def _random_start_images(recipe: Recipe, folder: Path) -> Data:
    """Random start images and the prompt file whose lines they belong to."""
    prompts, images, r = folder / "prompts.txt", folder / "images", recipe.rollout
    write_text(prompts, "\n".join(PROMPTS) + "\n")
    student = backbones(recipe)["student"]
    beside = student["in_channels"] - student["out_channels"]
    for line, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(line)
        if beside:
            tensors = {
                "image": torch.randn(257, 32, generator=generator),
                "channels": torch.randn(beside, r.frames, r.height, r.width, generator=generator) / math.sqrt(2),
            }
        else:
            tensors = {"latent": torch.randn(student["out_channels"], 1, r.height, r.width, generator=generator)}
        write_tensors(images / f"{line:06d}.safetensors", tensors, {"prompt": prompt})
    return replace(recipe.data, prompts=str(prompts), images=str(images))
