"""What a transformer is made of, before any weight is read: from a checkpoint's own header, or from a well-known name.

A recipe can be estimated and dry-run where its checkpoints are not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from salt.checkpoints import read_checkpoint
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Recipe, RecipeError

WAN_1_3B: dict[str, Any] = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "in_channels": 16}
WAN_14B: dict[str, Any] = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "in_channels": 16}
I2V: dict[str, Any] = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
# Released students whose file names do not tell their size.
SMALL = ("ode_init", "causal_ode", "causal_forcing", "longlive", "salt_cf", "salt_ll", "self_forcing")
TINY = Path(__file__).parents[2] / "salt" / "assets" / "tiny" / "transformer"


def config_of(path: str, key: str = "checkpoint") -> dict[str, Any]:
    """Arguments of `SaltTransformer3DModel` for a checkpoint, which need not be there if its name tells its size.

    Names with 1.3B or 14B (and I2V) are Wan 2.1's, those of released students (and of runs that make such) are 1.3B,
    and tiny is salt-tiny's.
    Raises RecipeError for a name that says nothing, CheckpointError for a file that is no Wan transformer.
    """
    if Path(path).exists():
        return {"out_channels": 16, **read_checkpoint(path).config}
    name = path.lower()
    if "tiny" in name:
        return config_of(str(TINY))
    if re.search(r"1[._]3b", name) or any(word in name for word in SMALL):
        return {"out_channels": 16, **WAN_1_3B}
    if "14b" in name:
        return {"out_channels": 16, **WAN_14B, **(I2V if "i2v" in name else {})}
    raise RecipeError(f"{key}: found no such file {path!r}, and its name tells no size (1.3B or 14B)")


def meta_model(config: dict[str, Any]) -> SaltTransformer3DModel:
    """A model of this configuration without storage: for names, shapes and counts."""
    with torch.device("meta"):
        return SaltTransformer3DModel(**config)


def backbones(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Configurations of student, critic and teacher; the critic's as `building.build_critic` chooses it.

    Where a stage has no critic or needs no teacher, the student's stands in its place.
    """
    models = recipe.models
    student = config_of(models.student, "models.student")
    if recipe.stage == "tf" or (recipe.stage == "ode" and not models.teacher):
        return {"student": student, "critic": dict(student), "teacher": dict(student)}
    teacher = config_of(models.teacher, "models.teacher")
    critic = config_of(models.critic, "models.critic") if models.critic else dict(student)
    return {"student": student, "critic": critic, "teacher": teacher}


def check_backbones(recipe: Recipe) -> None:
    """Raise RecipeError where the three models do not go together, or the recipe asks for what they lack."""
    found = backbones(recipe)
    channels = {name: (c["in_channels"], c["out_channels"]) for name, c in found.items()}
    if len(set(channels.values())) > 1:
        raise RecipeError(f"models: found channels (in, out) {channels}, expected the same of all three")
    layers = found["teacher"]["num_layers"]
    if recipe.stage == "distill" and recipe.loss.align != "none" and not 0 <= recipe.loss.align_block < layers:
        raise RecipeError(
            f"loss.align_block: found {recipe.loss.align_block}, expected 0 to {layers - 1} "
            "(the teacher's transformer blocks)"
        )
    extra, out = channels["student"][0] - channels["student"][1], channels["student"][1]
    if extra and recipe.stage != "distill":
        raise RecipeError(f"stage: found {recipe.stage} with an image-to-video student, expected a text-to-video one")
    if extra and (not recipe.data.images or recipe.data.prompts == "shapes"):
        raise RecipeError("data.images: found none, expected precomputed start images (the student is I2V)")
    if not extra and recipe.data.images:
        raise RecipeError(f"data.images: found start images, expected none (the student takes {out} channels, no I2V)")
    patch = found["student"].get("patch_size", (1, 2, 2))
    if recipe.rollout.height % patch[1] or recipe.rollout.width % patch[2]:
        raise RecipeError(
            f"rollout.height, rollout.width: found {recipe.rollout.height} and {recipe.rollout.width}, expected "
            f"multiples of the patch {patch[1]}x{patch[2]}"
        )
