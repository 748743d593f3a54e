"""Checks of a recipe before anything heavy loads: settings that cannot work together, and files that are missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from salt.io.prompt_files import read_prompts
from salt.schedule import STEP_LISTS
from train.config.downloads import WAN_PTH_FILES, with_download
from train.config.loader import check_ranges
from train.config.recipe import Recipe, RecipeError
from train.config.step_checks import check_first_frame, check_steps


def check_recipe(recipe: Recipe, processes: int = 1) -> None:
    """Raise RecipeError for missing files and for settings that cannot work together. Loads nothing heavy."""
    errors = missing_files(recipe)
    if errors:
        more = f" ({len(errors) - 1} more missing, all are listed by --dry-run)" if errors[1:] else ""
        raise RecipeError(errors[0].field, errors[0].problem + more)
    check_settings(recipe, processes)

    from train.data.prompt_checks import check_prompts  # a slow import, for what is checked last

    check_prompts(recipe)


def missing_files(recipe: Recipe) -> list[RecipeError]:
    """An error for every file or folder that the recipe names and that is missing or empty."""
    return [*_missing_models(recipe), *_missing_data(recipe)]


def _missing_models(recipe: Recipe) -> list[RecipeError]:
    models, errors = recipe.models, []
    needed = {"student": models.student}
    if recipe.stage == "cd":
        needed["teacher"] = models.teacher
    if recipe.stage == "distill":
        needed |= {"teacher": models.teacher, "critic": models.critic}
    for name, path in needed.items():
        if (path or name != "critic") and not Path(path or "/nonexistent").exists():
            problem = with_download(f"found no such file {path!r}, expected a checkpoint", path)
            errors.append(RecipeError(f"models.{name}", problem))
    if models.text != "words" and not recipe.data.embeddings:
        errors += _missing_folder("text", models.text, ("text_encoder", "tokenizer"), "expected text_encoder/ in it")
    if recipe.run.sample_every or recipe.streams or recipe.loss.reward:
        reasons = {"run.sample_every": recipe.run.sample_every, "rollout.long_tuning=chunks": recipe.streams}
        needs = next((name for name, holds in reasons.items() if holds), "loss.reward")
        errors += _missing_folder("vae", models.vae, ("config.json",), f"{needs} needs it")
    return errors


def _missing_folder(name: str, path: str, contents: tuple[str, ...], reason: str) -> list[RecipeError]:
    """An error if the folder `models.{name}` is missing, or is one in Wan's own layout instead of diffusers'."""
    folder = Path(path or "/nonexistent")
    if not folder.is_dir():
        problem = f"found no such folder {path!r}, {reason}"
    elif any((folder / file).exists() for file in WAN_PTH_FILES) and not all((folder / x).exists() for x in contents):
        problem = f"found Wan's own layout in {path!r}, expected diffusers' ({', '.join(contents)})"
    else:
        return []
    return [RecipeError(f"models.{name}", with_download(problem, path))]


def _missing_data(recipe: Recipe) -> list[RecipeError]:
    data, errors = recipe.data, []
    if recipe.reads_clips and not data.clips:
        reader = "loss.adversarial" if recipe.stage == "distill" else f"the stage {recipe.stage}"
        errors.append(RecipeError("data.clips", f"found none, {reader} needs a folder of clips"))
    elif data.prompts != "shapes" and (not recipe.reads_clips or _computes_trajectories(recipe)):
        try:
            check_prompt_file(Path(data.prompts))
        except RecipeError as error:
            errors.append(error)
    command = f"`python -m train precompute {recipe.name}{precompute_option(recipe)}`"
    for name in ("embeddings", "images", "clips"):
        folder = getattr(data, name)
        if folder and not Path(folder).is_dir():
            problem = f"found no such folder {folder!r}, {command} creates it"
            errors.append(RecipeError(f"data.{name}", problem))
        elif folder and name != "embeddings" and not any(Path(folder).iterdir()):  # a prompt can be embedded later
            problem = f"found nothing in {folder!r}, {command} fills it"
            errors.append(RecipeError(f"data.{name}", problem))
    return errors


def _computes_trajectories(recipe: Recipe) -> bool:
    """Whether trajectories of prompts are still to be computed; those behind clean clips have their captions."""
    return recipe.stage == "ode" and not recipe.has_history and not Path(recipe.data.clips).is_dir()


def precompute_option(recipe: Recipe) -> str:
    """What `precompute` needs beside the recipe."""
    if recipe.data.images:
        return " --images FOLDER" if recipe.data.prompts != "shapes" else ""
    return (
        " --videos FOLDER" if recipe.reads_clips and recipe.stage != "ode" and recipe.data.prompts != "shapes" else ""
    )


def check_prompt_file(path: Path) -> None:
    """Raise RecipeError for a prompt file that is missing, unreadable or empty, with its download where it has one."""
    try:
        read_prompts(path)
    except (OSError, ValueError) as error:
        problem = with_download(f"cannot be used ({error})", str(path))
        raise RecipeError("data.prompts", problem) from error


def check_settings(recipe: Recipe, processes: int = 1) -> None:
    """Raise RecipeError for settings that cannot work together, wherever the files are."""
    check_ranges(recipe)
    _check_rollout(recipe)
    _check_first_steps(recipe)
    check_steps(recipe)
    check_first_frame(recipe)
    _check_losses(recipe)
    _check_adversarial(recipe)
    if recipe.loss.reward:
        from train.rewards import find_reward  # which imports its modules

        find_reward(recipe.loss.reward)
    if recipe.stage != "distill":
        _check_initial_stages(recipe)
    _check_adapters(recipe)
    _check_optimisation(recipe, processes)
    if recipe.data.embeddings and recipe.models.text == "words":
        raise RecipeError("data.embeddings", "has no effect with models.text=words, whose words need no text encoder")
    tracker = recipe.run.tracker
    if tracker != "none" and not importlib.util.find_spec(tracker):
        raise RecipeError("run.tracker", f"found {tracker} without its package, pip install it or use none")


def _check_rollout(recipe: Recipe) -> None:
    r = recipe.rollout
    unknown = sorted(set(r.share) - {*STEP_LISTS, 1})
    if unknown or abs(sum(r.share.values()) - 1) > 1e-6:
        raise RecipeError(
            "rollout.share", f"found {dict(r.share)}, expected 8, 4, 2 and 1 with probabilities that sum to 1"
        )
    if r.kind == "bidirectional":
        if r.window:
            raise RecipeError("rollout.window", "is not supported by bidirectional students")
        return
    first = 1 if r.independent_first_frame else 0
    window = r.window or r.frames
    if (r.frames - first) % r.frames_per_block or (window - first * (window == r.frames)) % r.frames_per_block:
        raise RecipeError(
            "rollout.frames, rollout.window",
            f"found {r.frames} and {window}, expected whole blocks of {r.frames_per_block}"
            f"{' after the first frame' if first else ''}",
        )
    if window > r.frames:
        raise RecipeError("rollout.window", f"found {window}, expected at most the clip's {r.frames} frames")
    _check_long_tuning(recipe)
    if recipe.policy.rebuilt or recipe.policy.keeps_last_step:
        raise RecipeError("rollout.memory", f"found {recipe.policy}, expected one that training writes block by block")
    try:
        recipe.policy.check_block(r.frames_per_block)
    except ValueError as error:
        raise RecipeError("rollout.memory", f"cannot be used ({error})") from error


def _check_first_steps(recipe: Recipe) -> None:
    """Raise RecipeError for steps of a clip's first block that do nothing, or beside what knows one list for a clip."""
    r, loss, found = recipe.rollout, recipe.loss, recipe.rollout.first_steps
    if not found:
        return
    if recipe.stage != "distill" or r.kind == "bidirectional":
        raise RecipeError("rollout.first_steps", "has no effect without rollouts in blocks", found)
    if found not in STEP_LISTS or found <= max(r.share):
        raise RecipeError("rollout.first_steps", f"expected 4 or 8, more than those of {dict(r.share)}", found)
    others = {
        "loss.semigroup": loss.semigroup, "loss.align": loss.align != "none", "rollout.stepping": r.stepping != "sde",
        "rollout.window": r.window not in (0, r.frames),
    }  # fmt: skip
    if beside := [name for name, value in others.items() if value]:
        raise RecipeError("rollout.first_steps", f"is not supported beside {', '.join(beside)}", found)


def _check_long_tuning(recipe: Recipe) -> None:
    """Raise RecipeError for what clips longer than the window do not have."""
    r = recipe.rollout
    if r.long_tuning != "chunks" and r.window in (0, r.frames):
        problem = f"has no effect on clips of {r.frames} frames with loss on all, expected a shorter rollout.window"
        raise RecipeError("rollout.long_tuning", problem, r.long_tuning)
    if recipe.windows and r.window <= r.frames_per_block:
        problem = f"found {r.window}, expected more than a block, {r.frames_per_block}: the first one carries no loss"
        raise RecipeError("rollout.window", problem)
    if not (recipe.streams or recipe.windows):
        return
    part = "chunks" if recipe.streams else "windows"
    if recipe.loss.align != "none":
        problem = f"is not supported by {part} (their references would need a memory of their own): expected none"
        raise RecipeError("loss.align", f"{problem}, or rollout.long_tuning=end", recipe.loss.align)
    if recipe.data.images:
        raise RecipeError("data.images", f"is not supported by {part} of longer clips: expected rollout.window=0")


def _check_losses(recipe: Recipe) -> None:
    loss, r = recipe.loss, recipe.rollout
    if loss.semigroup and 8 not in r.share:
        raise RecipeError(
            "loss.semigroup", "needs 8 in rollout.share (L_SC is defined on the 8-step list)", loss.semigroup
        )
    if loss.align != "none":
        if r.kind == "bidirectional":
            raise RecipeError("loss.align", "is not supported by bidirectional students (they have no KV memory)")
        if 2 not in r.share and not (loss.align == "paper" and 4 in r.share):
            raise RecipeError("loss.align", "needs 2 in rollout.share (the clips that it aligns)", loss.align)
    if loss.guidance_max and loss.guidance_max < loss.guidance:
        raise RecipeError("loss.guidance_max", f"found {loss.guidance_max}, expected guidance {loss.guidance} or more")
    if loss.score != "bidirectional" and r.kind == "bidirectional":
        raise RecipeError("loss.score", "is not supported by bidirectional students", loss.score)


def _check_adapters(recipe: Recipe) -> None:
    models = recipe.models
    for name, value in (("lora_alpha", models.lora_alpha), ("lora_critic", models.lora_critic)):
        if value and not models.lora_rank:
            raise RecipeError(f"models.{name}", "has no effect without models.lora_rank", value)


def _check_adversarial(recipe: Recipe) -> None:
    ratio = recipe.loss.adversarial
    if not ratio:
        return
    if recipe.data.images:
        raise RecipeError("loss.adversarial", "is not supported by image-to-video students", ratio)
    r = recipe.rollout
    if r.window not in (0, r.frames):
        problem = "is not supported by windows of longer clips (real clips begin with a picture): use rollout.window=0"
        raise RecipeError("loss.adversarial", problem, ratio)


def _check_initial_stages(recipe: Recipe) -> None:
    loss = recipe.loss
    terms = {"semigroup": loss.semigroup, "align": loss.align, "adversarial": loss.adversarial, "reward": loss.reward}
    of_distillation = {f"loss.{name}": value for name, value in terms.items() if value != "none"}
    for key, value in (of_distillation | {"models.lora_critic": recipe.models.lora_critic}).items():
        if value:
            raise RecipeError(key, f"has no effect in the stage {recipe.stage}", value)
    if recipe.rollout.kind == "bidirectional":
        raise RecipeError("stage", "is not supported by bidirectional students", recipe.stage)
    if recipe.policy.relative or recipe.policy.kind == "cyclic":
        raise RecipeError("stage", f"needs absolute positions, not the memory policy {recipe.policy}", recipe.stage)
    if recipe.stage == "cd":
        _check_consistency(recipe)
    if recipe.start.history == "rollout" and not (recipe.stage == "ode" and recipe.start.teacher == "causal"):
        raise RecipeError("start.history", "has no effect without a causal teacher's trajectories", "rollout")
    if recipe.data.history and not recipe.has_history:
        problem = "found a folder of clean clips, which only trajectories with start.history=real lie behind"
        raise RecipeError("data.history", problem)
    dense = max(recipe.rollout.share)
    if recipe.start.teacher_steps % dense:
        raise RecipeError(
            "start.teacher_steps",
            f"found {recipe.start.teacher_steps}, expected a multiple of {dense} (the student's steps lie on the "
            "teacher's)",
        )


def _check_consistency(recipe: Recipe) -> None:
    if recipe.start.teacher != "causal":
        found = recipe.start.teacher
        raise RecipeError("start.teacher", f"found {found}, expected causal in the stage cd (clean clips are its past)")
    opt = recipe.optimisation
    if opt.ema_start:
        problem = f"found {opt.ema_start}, expected 0 in the stage cd (the average is the target of every update)"
        raise RecipeError("optimisation.ema_start", problem)


def _check_optimisation(recipe: Recipe, processes: int) -> None:
    opt = recipe.optimisation
    if opt.schedule == "cosine" and opt.warmup >= opt.updates:
        problem = f"found {opt.warmup}, expected less than the {opt.updates} updates that a cosine ends with"
        raise RecipeError("optimisation.warmup", problem)
    if opt.final_lr and opt.schedule == "constant":
        raise RecipeError("optimisation.final_lr", "has no effect without schedule=cosine", opt.final_lr)
    together = opt.sequence or 1
    if opt.batch % (opt.micro_batch * max(processes // together, 1)):
        shares = (
            f"{processes // together} groups of {together} processes" if opt.sequence > 1 else f"{processes} processes"
        )
        raise RecipeError(
            "optimisation.batch",
            f"found {opt.batch}, expected a multiple of micro_batch {opt.micro_batch} x {shares}",
        )
