"""Transformer configurations without reading weights: from a checkpoint's header, or from the size in its name.

So a recipe can be estimated and dry-run where its checkpoints are missing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from salt.checkpoints import CheckpointError, read_checkpoint
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.spec import FPS, TINY_FOLDER, WAN22_CHANNELS, WAN22_FPS
from train.config.recipe import Recipe, RecipeError
from train.config.vae_config import latent_scale

WAN21_CHANNELS = 16  # of the latents of Wan 2.1's VAE
WAN21: dict[str, Any] = {"in_channels": WAN21_CHANNELS, "out_channels": WAN21_CHANNELS}
WAN_1_3B: dict[str, Any] = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, **WAN21}
WAN_14B: dict[str, Any] = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, **WAN21}
I2V: dict[str, Any] = {"in_channels": 2 * WAN21_CHANNELS + 4, "image_dim": 1280, "added_kv_proj_dim": 5120}
WAN22: dict[str, Any] = {"in_channels": WAN22_CHANNELS, "out_channels": WAN22_CHANNELS}
WAN_5B: dict[str, Any] = {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, **WAN22}
NAMES_OF_5B = re.compile(r"longlive[-_]?2|(?<![0-9a-z.])5b(?![0-9a-z])")
# Released 1.3B students whose file names do not contain their size.
NAMES_OF_1_3B = ("ode_init", "causal_ode", "causal_forcing", "longlive", "salt_cf", "salt_ll", "self_forcing")


def config_of(path: str, key: str = "checkpoint") -> dict[str, Any]:
    """Arguments of `SaltTransformer3DModel` for a checkpoint, which may be missing if its name contains its size.

    Names with 1.3B or 14B (and I2V) are Wan 2.1's, those with 5B or of LongLive 2.0 are Wan 2.2's, names of other
    released students (and of runs that train them) are 1.3B, and `tiny` is salt-tiny's. key: the recipe's, for the
    error.
    Raises RecipeError for a missing file whose name has no size, and for a file that is no Wan transformer.
    """
    if Path(path).exists():
        try:
            return dict(read_checkpoint(path).config)
        except (CheckpointError, OSError) as error:
            raise RecipeError(key, f"cannot be used ({error})") from error
    name = path.lower()
    if "tiny" in name:
        return config_of(str(TINY_FOLDER / "transformer"))
    if NAMES_OF_5B.search(name):
        return dict(WAN_5B)
    if re.search(r"1[._]3b", name) or any(word in name for word in NAMES_OF_1_3B):
        return dict(WAN_1_3B)
    if "14b" in name:
        return {**WAN_14B, **(I2V if "i2v" in name else {})}
    raise RecipeError(key, f"found no such file {path!r}, and its name contains no size (1.3B, 5B or 14B)")


def student_fps(recipe: Recipe) -> int:
    """Pixel frames per second of the student's clips, and of the real ones that it learns from.

    What its file says, else what its latents tell. Raises RecipeError as `config_of` does.
    """
    path = recipe.models.student
    spec = read_checkpoint(path).spec if Path(path).exists() else None
    if spec is not None:
        return spec.fps
    return WAN22_FPS if config_of(path, "models.student")["out_channels"] == WAN22_CHANNELS else FPS


def meta_model(config: dict[str, Any]) -> SaltTransformer3DModel:
    """A model of this configuration on the meta device: for names, shapes and counts."""
    with torch.device("meta"):
        return SaltTransformer3DModel(**config)


def backbones(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Configurations of student, critic and teacher; the student's for those that the stage does not have."""
    models = recipe.models
    student = config_of(models.student, "models.student")
    if recipe.stage == "tf" or (recipe.stage == "ode" and not models.teacher):
        return {"student": student, "critic": dict(student), "teacher": dict(student)}
    teacher = config_of(models.teacher, "models.teacher")
    critic = config_of(models.critic, "models.critic") if models.critic else dict(student)
    return {"student": student, "critic": critic, "teacher": teacher}


def critic_checkpoint(recipe: Recipe) -> str:
    """What the critic begins as: the recipe's, else the teacher where it has the student's size, else the student."""
    models = recipe.models
    if models.critic:
        return models.critic
    teacher, student = config_of(models.teacher, "models.teacher"), config_of(models.student, "models.student")
    same = all(
        teacher.get(k) == student.get(k) for k in ("num_attention_heads", "num_layers", "ffn_dim", "in_channels")
    )
    return models.teacher if same else models.student


def _check_first_latent(recipe: Recipe, channels: int) -> None:
    """Raise RecipeError where clips of a text-to-video student cannot begin with a picture's latent."""
    r = recipe.rollout
    if recipe.stage != "distill":
        raise RecipeError("data.images", f"has no effect in the stage {recipe.stage}, whose clips begin as they are")
    if r.kind == "bidirectional":
        problem = f"is not supported by bidirectional text-to-video students ({channels} input channels)"
        raise RecipeError("data.images", problem)
    if r.window not in (0, r.frames):
        raise RecipeError("data.images", "is not supported with loss on a window: expected rollout.window=0")
    if not (r.independent_first_frame or r.gives_first_frame) and r.frames_per_block > 1:
        problem = (
            "found false, expected true with data.images (the picture's latent is a block of its own), or "
            "rollout.gives_first_frame=true"
        )
        raise RecipeError("rollout.independent_first_frame", problem)


def check_backbones(recipe: Recipe) -> None:
    """Raise RecipeError where the three models do not fit together, or lack what the recipe needs."""
    found = backbones(recipe)
    channels = {name: (c["in_channels"], c["out_channels"]) for name, c in found.items()}
    if len(set(channels.values())) > 1:
        raise RecipeError("models", f"found channels (in, out) {channels}, expected the same of all three")
    text = {name: c.get("text_dim", 4096) for name, c in found.items()}  # Wan's where only the name is known
    if len(set(text.values())) > 1:
        raise RecipeError("models", f"found text_dim {text}, expected the same of all three")
    patches = {name: tuple(c.get("patch_size", (1, 2, 2))) for name, c in found.items()}
    if len(set(patches.values())) > 1:
        raise RecipeError("models", f"found patch_size {patches}, expected the same of all three")
    layers = found["teacher"]["num_layers"]
    if recipe.stage == "distill" and recipe.loss.align != "none" and not 0 <= recipe.loss.align_block < layers:
        raise RecipeError(
            "loss.align_block",
            f"found {recipe.loss.align_block}, expected 0 to {layers - 1} (the teacher's transformer blocks)",
        )
    extra, out = channels["student"][0] - channels["student"][1], channels["student"][1]
    if extra and recipe.stage != "distill":
        raise RecipeError("stage", "is not supported by image-to-video students", recipe.stage)
    if extra and (not recipe.data.images or recipe.data.prompts == "shapes"):
        raise RecipeError("data.images", "found none, expected precomputed start images (the student is I2V)")
    if not extra and recipe.data.images:
        _check_first_latent(recipe, out)
    scale = latent_scale(recipe.models.vae)
    if scale is not None and scale.channels != out:
        problem = f"found latents of {scale.channels} channels in {recipe.models.vae}, expected the student's {out}"
        raise RecipeError("models.vae", problem)
    patch = patches["student"]
    if recipe.rollout.height % patch[1] or recipe.rollout.width % patch[2]:
        raise RecipeError(
            "rollout.height, rollout.width",
            f"found {recipe.rollout.height} and {recipe.rollout.width}, expected multiples of the patch "
            f"{patch[1]}x{patch[2]}",
        )
