"""The dry run: a recipe played through at its own settings, with tiny random models where its checkpoints would be.

Layouts stay (channels, image conditioning, which models there are); sizes shrink to what a CPU does in seconds. The
seed is chosen so that two updates meet every loss the recipe has.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from salt.checkpoints import save_diffusers
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.model_configs import backbones
from train.config.recipe import Recipe, Rollouts
from train.methods.sc_dmd_losses import aligns
from train.rollout.random_draws import draw_update

UPDATES = 2
SIZE = 4  # latent rows and columns: two patches
FRAMES = 30  # longest clip
LAYERS = 2
TINY_VAE = Path(__file__).parents[1] / "salt" / "assets" / "tiny" / "vae"
PROMPTS = ("a red circle moving right", "a blue square moving up", "a fast purple square moving up")


def rehearsal(recipe: Recipe, folder: Path, processes: int = 1) -> Recipe:
    """A recipe of the same settings for models of no size, whose files are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, config) in enumerate(backbones(recipe).items()):
        save_diffusers(_stand_in(config, number), folder / name)
    models = replace(
        recipe.models, student=str(folder / "student"), teacher=str(folder / "teacher"), critic=str(folder / "critic"),
        text="words", vae=str(TINY_VAE), weights="auto", lora_rank=min(recipe.models.lora_rank, 2),
    )  # fmt: skip
    r, opt = recipe.rollout, recipe.optimisation
    frames = r.frames if r.frames <= FRAMES else _shorter(r)
    micro = min(opt.micro_batch, 2)
    small = replace(
        recipe,
        models=models,
        data=replace(recipe.data, prompts="shapes", embeddings="", images="", clips="", negative=""),
        rollout=replace(r, frames=frames, height=SIZE, width=SIZE),
        loss=replace(recipe.loss, align_start=0, align_block=LAYERS - 1),
        start=replace(recipe.start, teacher_steps=max(r.share), clips=2),
        optimisation=replace(opt, micro_batch=micro, batch=2 * micro * processes, updates=UPDATES, ema_start=1),
        run=replace(
            recipe.run, out=str(folder / "run"), save_every=1, sample_every=1, sample_prompts=1,
            tracker="tensorboard" if recipe.run.tracker == "tensorboard" else "none",  # nothing leaves the machine
        ),
    )  # fmt: skip
    if recipe.stage != "distill":
        return replace(small, data=replace(small.data, clips=str(folder / "clips")))
    if recipe.data.images:
        small = replace(small, data=_starts(small, folder))
    return meeting_every_loss(small)


def _shorter(r: Rollouts) -> int:
    """Frames of a clip of the same kind, as long as FRAMES allows: whole blocks, a first frame, room for the window."""
    blocks = max(FRAMES // r.frames_per_block, 1) * r.frames_per_block
    return max(blocks + r.independent_first_frame, r.window + (r.independent_first_frame and r.window < r.frames))


def meeting_every_loss(recipe: Recipe) -> Recipe:
    """The recipe with the first seed at which its updates carry L_SC and the alignment, where it has them."""
    for seed in range(10_000):
        tried = replace(recipe, run=replace(recipe.run, seed=seed))
        drawn = [draw_update(tried, update, "generator") for update in range(UPDATES)]
        defect = not recipe.loss.semigroup or any(c.triple for c in drawn)
        aligned = recipe.loss.align == "none" or any(
            c.exit_index and aligns(tried, c, update) for update, c in enumerate(drawn)
        )
        if defect and aligned:
            return tried
    raise RuntimeError(f"no seed meets every loss of {recipe.name} in {UPDATES} updates")


def _stand_in(config: dict[str, Any], seed: int) -> SaltTransformer3DModel:
    torch.manual_seed(seed)
    heads, head_dim = 2, 16
    image: dict[str, Any] = {}
    if config.get("image_dim"):
        image = {"image_dim": 32, "added_kv_proj_dim": heads * head_dim}
    model = SaltTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, ffn_dim=32, num_layers=LAYERS, freq_dim=32,
        text_dim=4096, in_channels=config["in_channels"], out_channels=config["out_channels"], **image,
    )  # fmt: skip
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.2)  # so that what the models say is not next to nothing
    return model


def _starts(recipe: Recipe, folder: Path) -> Any:
    """Start images (random) and the prompt file whose lines they belong to."""
    prompts, images, r = folder / "prompts.txt", folder / "images", recipe.rollout
    prompts.write_text("\n".join(PROMPTS) + "\n")
    images.mkdir(exist_ok=True)
    extra = backbones(recipe)["student"]
    channels = extra["in_channels"] - extra["out_channels"]
    for line in range(len(PROMPTS)):
        generator = torch.Generator().manual_seed(line)
        tensors = {
            "image": torch.randn(257, 32, generator=generator),
            "channels": torch.randn(channels, r.frames, r.height, r.width, generator=generator) / math.sqrt(2),
        }
        save_file(tensors, images / f"{line:06d}.safetensors")
    return replace(recipe.data, prompts=str(prompts), images=str(images))
