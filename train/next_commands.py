"""The commands that follow a finished one, as it prints them: from data to a student, its scores, a video, ComfyUI."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from train.config.loader import load_recipe, recipe_names
from train.config.recipe import Recipe
from train.config.validation import precompute_option

TINY_PROMPT = "a fast red circle moving right"
EVALUATED_PROMPTS = 8


def command(*words: str | Path) -> str:
    """A command line for this system's shell."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def before_distill(recipe: str | Path, *overrides: str) -> str:
    """The run of a recipe whose data is there, or which was tried dry."""
    return f"next: {command('python', '-m', 'train', 'distill', recipe, *overrides)}"


def after_distill(recipe: Recipe, student: Path) -> list[str]:
    """Scores, a video and ComfyUI for a few-step student; for what an initial stage trains, the recipes that start with
    it."""
    if recipe.stage != "distill":
        return _after_initial_stage(student)
    parts, image = _parts(recipe), ["--image", "start.png"] if recipe.data.images else []
    lines = []
    if recipe.models.text == "words":
        lines.append(command("python", "-m", "train", "evaluate", student))
    elif not image:
        benches = ["defect", "drift"] if recipe.rollout.kind == "autoregressive" else ["defect"]
        prompts = ["--prompts", recipe.data.prompts, "--limit", str(EVALUATED_PROMPTS)]
        lines.append(command("python", "-m", "train", "evaluate", student, "--bench", *benches, *prompts, *parts))
    prompt = TINY_PROMPT if recipe.models.text == "words" else "a prompt"
    return [f"next: {line}" for line in [*lines, _video(student, prompt, image + parts)]] + [in_comfyui(student)]


def after_evaluate(student: Path, prompt: str, parts: str) -> list[str]:
    """A video and ComfyUI."""
    return [f"next: {_video(student, prompt, ['--parts', parts] if parts else [])}", in_comfyui(student)]


def in_comfyui(student: Path) -> str:
    """Where a student's file goes; the folder by its path where this is a pack within ComfyUI."""
    here = Path.cwd()
    models = here.parents[1] / "models" if here.parent.name == "custom_nodes" else Path("models")
    folder = models / ("diffusers" if student.is_dir() else "diffusion_models")
    return f"ComfyUI: copy {student} to {folder}, press R and choose it in Load Salt Student"


def _video(student: Path, prompt: str, options: list[str]) -> str:
    """`salt` by its module, which the pack's folder in ComfyUI has too."""
    words = ("--model", student, *options, "-o", f"{student.stem}.mp4")
    return command("python", "-m", "salt.cli", "generate", prompt, *words)


def _parts(recipe: Recipe) -> list[str]:
    """The option for the text encoder and VAE, where the recipe's lie in one folder; else those that were pulled."""
    from salt.pipeline.components import TINY_NAME  # a slow import

    text = recipe.models.text
    if text == "words":
        return ["--parts", TINY_NAME]
    return ["--parts", text] if (Path(text) / "vae").is_dir() else []


def _after_initial_stage(student: Path) -> list[str]:
    """The recipes that name the file, each with its data first; else how to name it."""
    lines = []
    for name in recipe_names():
        other = load_recipe(name)
        if student.as_posix() in (other.models.student, other.models.teacher):
            lines.append(command("python", "-m", "train", *_first_words(other)))
    unnamed = f"python -m train distill RECIPE {command(f'models.student={student}')}"
    return [f"next: {line}" for line in lines or [unnamed]]


def _first_words(recipe: Recipe) -> list[str]:
    """What a recipe begins with: the run, where the clips or pictures that it names are there, else their computation.

    A teacher's trajectories are computed (or checked) always, as another teacher has others.
    """
    folders = [recipe.data.images, recipe.data.clips if recipe.reads_clips else ""]
    there = all(any(Path(folder).glob("*.safetensors")) for folder in folders if folder)
    if there and recipe.stage != "ode":
        return ["distill", recipe.name]
    return ["precompute", recipe.name, *precompute_option(recipe).split()]
