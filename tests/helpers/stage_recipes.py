"""Recipes of the trainer's stages and losses on models small enough for a test, beside `tiny_recipes.recipe`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from salt.spec import TINY_FOLDER
from tests.helpers import tiny_recipes
from train.config.recipe import Recipe

CAPTIONS = ("a red circle moving right", "a blue square moving up", "a green circle moving left")


def cd_recipe(folder: Path, **optimisation) -> Recipe:
    """Two real clips of two blocks."""
    clips = folder / "clips"
    clips.mkdir(exist_ok=True)
    for i in range(2):
        latents = torch.randn(16, 6, 4, 4, generator=torch.Generator().manual_seed(i))
        save_file({"latents": latents}, clips / f"{i:06d}.safetensors", {"prompt": "a red circle"})
    recipe = tiny_recipes.recipe(
        folder,
        rollout=dict(share={4: 1.0}),
        loss=dict(semigroup=0.0, align="none"),
        data=dict(clips=str(clips)),
        optimisation=dict(batch=2, ema=0.5, ema_start=0, updates=4) | optimisation,
    )
    start = replace(recipe.start, teacher="causal", step_for="clip", teacher_steps=8, guidance=2.0)
    return replace(recipe, stage="cd", start=start)


def windows_recipe(folder: Path, **sections) -> Recipe:
    """Windows of 6 frames in clips of 15."""
    long = dict(frames=15, window=6, long_tuning="window", memory="relative:3,window:6")
    sections["rollout"] = long | sections.get("rollout", {})
    return tiny_recipes.recipe(folder, loss=dict(align="none"), **sections)


def adversarial_recipe(folder: Path, **loss) -> Recipe:
    """Three real clips, which are constant, as no student's are."""
    clips = folder / "clips"
    clips.mkdir(exist_ok=True)
    for i, caption in enumerate(CAPTIONS):
        save_file({"latents": torch.full((16, 3, 4, 4), float(i))}, clips / f"{i:06d}.safetensors", {"prompt": caption})
    return tiny_recipes.recipe(
        folder,
        data=dict(clips=str(clips)),
        rollout=dict(frames=3, share={2: 1.0}),
        loss=dict(align="none", semigroup=0.0, adversarial=6.0, adversarial_start=0) | loss,
        optimisation=dict(discriminator_lr=5e-3, critic_per_generator=1),
    )


def reward_recipe(folder: Path, **sections) -> Recipe:
    """The tiny autoencoder decodes latents of 4x4 to 32x32 pixels."""
    loss = dict(align="none", semigroup=0.0, reward="pixels:motion", reward_beta=1.5)
    return tiny_recipes.recipe(
        folder, models=dict(vae=str(TINY_FOLDER / "vae")), rollout=dict(frames=3, share={2: 1.0}), loss=loss, **sections
    )


def i2v_recipe(folder: Path, channels: int = 16, **sections) -> Recipe:
    """Clips that begin with one of three pictures' latents, then two blocks of three."""
    starts, prompts = folder / f"starts{channels}", folder / "prompts.txt"
    starts.mkdir(exist_ok=True)
    prompts.write_text("\n".join(CAPTIONS) + "\n")
    for i, caption in enumerate(CAPTIONS):
        latent = torch.randn(channels, 1, 4, 4, generator=torch.Generator().manual_seed(i))
        save_file({"latent": latent}, starts / f"{i:06d}.safetensors", {"prompt": caption})
    sections["rollout"] = dict(frames=7, independent_first_frame=True) | sections.get("rollout", {})
    return tiny_recipes.recipe(folder, data=dict(prompts=str(prompts), images=str(starts)), **sections)


RECIPES = {
    "cd": cd_recipe,
    "windows": windows_recipe,
    "adversarial": adversarial_recipe,
    "reward": reward_recipe,
    "i2v": i2v_recipe,
}
