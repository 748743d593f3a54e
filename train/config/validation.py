"""What is wrong with a recipe, found before anything heavy loads: combinations that cannot work, files not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from salt.io.prompt_files import read_prompts
from salt.schedule import STEP_LISTS
from train.config.recipe import Recipe, RecipeError
from train.distributed.parallel import Mode

# What there has to be one of.
COUNTS = {
    "optimisation": ("batch", "micro_batch", "updates", "critic_per_generator"),
    "rollout": ("frames", "height", "width", "frames_per_block"),
    "run": ("keep",),
}
# What may be nothing, but not less.
AMOUNTS = {
    "optimisation": ("lr", "critic_lr", "warmup", "weight_decay", "clip", "ema_start"),
    "run": ("save_every", "sample_every"),
}


def check_recipe(recipe: Recipe, processes: int = 1) -> None:
    """Raise RecipeError for combinations that cannot work and files that are not there. Loads nothing heavy."""
    check_files(recipe)
    check_settings(recipe, processes)


def missing_files(recipe: Recipe) -> list[str]:
    """A line for every file or folder that the recipe names and that is not there, or is empty."""
    models, data = recipe.models, recipe.data
    lines = []
    wanted = {"student": models.student}
    if recipe.stage == "distill":
        wanted |= {"teacher": models.teacher, "critic": models.critic}
    for key, path in wanted.items():
        if (path or key != "critic") and not Path(path or "/nonexistent").exists():
            lines.append(f"models.{key}: found no such file {path!r}, expected a checkpoint")
    if recipe.stage != "distill" and not data.clips:
        lines.append(f"data.clips: found none, expected a folder of clips for the stage {recipe.stage}")
    elif recipe.stage == "distill" and data.prompts != "shapes":
        lines += prompt_complaints(Path(data.prompts))
    for key in ("embeddings", "images", "clips"):
        folder = getattr(data, key)
        if folder and not Path(folder).is_dir():
            lines.append(f"data.{key}: found no such folder {folder!r}, `python -m train precompute` makes it")
        elif folder and key != "embeddings" and not any(Path(folder).iterdir()):  # a prompt can be embedded later
            lines.append(f"data.{key}: found nothing in {folder!r}, `python -m train precompute` fills it")
    if models.text != "words" and not data.embeddings and not Path(models.text).is_dir():
        lines.append(f"models.text: found no such folder {models.text!r}, expected text_encoder/ in it")
    if recipe.run.sample_every and not Path(models.vae or "/nonexistent").is_dir():
        lines.append(f"models.vae: found no such folder {models.vae!r}, expected one (run.sample_every asks for it)")
    return lines


def prompt_complaints(path: Path) -> list[str]:
    """What is wrong with a prompt file, if anything."""
    try:
        read_prompts(path)
    except (OSError, ValueError) as error:
        return [f"data.prompts: {error}"]
    return []


def check_files(recipe: Recipe) -> None:
    """Raise RecipeError for the first file that is not there."""
    for line in missing_files(recipe):
        raise RecipeError(line)


def check_settings(recipe: Recipe, processes: int = 1) -> None:
    """Raise RecipeError for combinations that cannot work, wherever the files are."""
    r, loss, opt = recipe.rollout, recipe.loss, recipe.optimisation
    for section, names in COUNTS.items():
        for name in names:
            if (found := getattr(getattr(recipe, section), name)) < 1:
                raise RecipeError(f"{section}.{name}: found {found}, expected 1 or more")
    for section, names in AMOUNTS.items():
        for name in names:
            if not (found := getattr(getattr(recipe, section), name)) >= 0:  # as no comparison with NaN is
                raise RecipeError(f"{section}.{name}: found {found}, expected 0 or more")
    unknown = sorted(set(r.share) - set(STEP_LISTS))
    if unknown or abs(sum(r.share.values()) - 1) > 1e-6:
        raise RecipeError(f"rollout.share: found {dict(r.share)}, expected 8, 4 and 2 with probabilities that sum to 1")
    if loss.semigroup and 8 not in r.share:
        raise RecipeError("loss.semigroup: found a weight, expected 8 in rollout.share (L_SC lives on the 8-step list)")
    if loss.align != "none":
        if r.kind == "bidirectional":
            raise RecipeError("loss.align: found it with a bidirectional student, expected none (it is about memory)")
        if 2 not in r.share and not (loss.align == "paper" and 4 in r.share):
            raise RecipeError(f"loss.align: found {loss.align}, expected 2 in rollout.share (what it aligns)")
    if loss.guidance_max and loss.guidance_max < loss.guidance:
        raise RecipeError(f"loss.guidance_max: found {loss.guidance_max}, expected at least guidance {loss.guidance}")
    if r.kind == "bidirectional" and (r.window or loss.score == "causal"):
        raise RecipeError("rollout.kind: found bidirectional with a window or causal scores, expected autoregressive")
    if r.kind == "autoregressive":
        _check_blocks(recipe)
    if recipe.stage != "distill":
        _check_starting(recipe)
    if opt.batch % (opt.micro_batch * processes):
        raise RecipeError(
            f"optimisation.batch: found {opt.batch}, expected a multiple of micro_batch {opt.micro_batch} x "
            f"{processes} processes"
        )
    tracker = recipe.run.tracker
    if tracker != "none" and not importlib.util.find_spec(tracker):
        raise RecipeError(f"run.tracker: found {tracker} without its package, pip install it or use none")


def check_mode(recipe: Recipe, mode: Mode) -> None:
    """Raise RecipeError for what cannot work on sharded models."""
    if mode != "fsdp":
        return
    if torch.__version__ < "2.8":  # compared as versions are
        # Weights of one block may be of two dtypes, which FSDP2 takes only since then: a teacher's norms stay float32.
        raise RecipeError(f"--mode: found fsdp with torch {torch.__version__}, expected torch 2.8 or newer, or ddp")
    if recipe.optimisation.optimizer == "8bit":
        raise RecipeError(
            "optimisation.optimizer: found 8bit with --mode fsdp, expected adamw or fused (bitsandbytes knows no "
            "sharded weights), or --mode ddp"
        )


def _check_starting(recipe: Recipe) -> None:
    if recipe.rollout.kind == "bidirectional":
        raise RecipeError(f"stage: found {recipe.stage} with a bidirectional student, expected an autoregressive one")
    if recipe.policy.relative or recipe.policy.kind == "cyclic":
        raise RecipeError(f"stage: found {recipe.stage} with {recipe.policy}, expected absolute positions")
    dense = max(recipe.rollout.share)
    if recipe.start.teacher_steps % dense:
        raise RecipeError(
            f"start.teacher_steps: found {recipe.start.teacher_steps}, expected a multiple of {dense} "
            "(the student's steps lie on the teacher's)"
        )


def _check_blocks(recipe: Recipe) -> None:
    r = recipe.rollout
    first = 1 if r.independent_first_frame else 0
    window = r.window or r.frames
    if (r.frames - first) % r.frames_per_block or (window - first * (window == r.frames)) % r.frames_per_block:
        raise RecipeError(
            f"rollout.frames, rollout.window: found {r.frames} and {window}, expected whole blocks of "
            f"{r.frames_per_block}{' after the first frame' if first else ''}"
        )
    if window > r.frames:
        raise RecipeError(f"rollout.window: found {window}, expected at most the clip's {r.frames} frames")
    try:
        recipe.policy.check_block(r.frames_per_block)
    except ValueError as error:
        raise RecipeError(f"rollout.memory: {error}") from error
