"""Export of the trained student: one safetensors file with a model card, optionally uploaded to the hub."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from salt.io.atomic import write_text
from salt.pipeline.components import TINY_NAME
from salt.spec import WAN22_CHANNELS, StudentSpec
from train.config.downloads import download_command
from train.config.recipe import Recipe
from train.methods.base import Trainer
from train.monitoring.metrics_logger import MEASURED

STAGES = {
    "distill": "distribution matching distillation",
    "ode": "regression on a teacher's ODE trajectories",
    "cd": "consistency distillation from a causal teacher",
    "tf": "teacher-forced flow matching",
}

# Settings that results were recorded without: they count where they are not as they were then.
NEWER = {
    "data": ("history",),
    "loss": ("adversarial", "adversarial_start", "reward", "reward_beta", "score_step_for", "scale_for"),
    "models": ("lora_alpha", "lora_critic"),
    "optimisation": ("schedule", "final_lr", "discriminator_lr", "shard", "sequence"),
    "rollout": ("long_tuning", "overlap", "gives_first_frame", "stepping", "first_steps"),
    "start": ("history", "step_for", "first_frame"),
}


class UploadError(RuntimeError):
    """A student that could not be uploaded to the hub; the message names the repository and the hub's answer."""


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits of all settings that affect the result (not of where it is written)."""
    settings = {k: v for k, v in recipe.to_dict().items() if k not in ("run", "name")}
    settings["models"] = {k: v for k, v in asdict(recipe.models).items() if k != "keep"}  # same gradients to the bit
    if recipe.stage != "tf":  # it acts on no other stage
        settings["start"] = {k: v for k, v in asdict(recipe.start).items() if k != "timestep_weight"}
    settings["seed"] = recipe.run.seed
    for section, default in Recipe().to_dict().items():
        found = settings.get(section)
        if isinstance(found, dict) and isinstance(default, dict):
            newer = NEWER.get(section, ())
            settings[section] = {k: v for k, v in found.items() if k not in newer or v != default[k]}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def export(trainer: Trainer, done: int) -> Path:
    """Write `export/NAME.safetensors` and its card README.md in the run's folder; returns the file."""
    recipe = trainer.recipe
    folder = Path(recipe.run.out) / "export"
    path = trainer.export(folder / f"{recipe.name}.safetensors")
    if trainer.accelerator.is_main_process:
        values = last_values(Path(recipe.run.out) / "losses.csv")
        card = model_card(recipe, trainer.facts.spec, done, values, trainer.student.model.model.config)
        write_text(folder / "README.md", card)
    return path


def last_values(curve: Path) -> dict[str, float]:
    """The newest value of every quantity in a losses.csv, but time and memory; empty without the file."""
    if not curve.exists():
        return {}
    with curve.open() as file:
        return {row["name"]: float(row["value"]) for row in csv.DictReader(file) if row["name"] not in MEASURED}


def _numbers(steps: Sequence[float]) -> str:
    return ", ".join(f"{s:g}" for s in steps)


def model_card(
    recipe: Recipe, spec: StudentSpec, done: int, values: Mapping[str, float], config: Mapping[str, Any]
) -> str:
    """Markdown with the hub's front matter: what the file is, how it was trained, last losses, how to use it.

    spec, config: of the student, and of its transformer.
    """
    wan = "Wan 2.2" if config["out_channels"] == WAN22_CHANNELS else "Wan 2.1"
    task = "image-to-video" if recipe.data.images else "text-to-video"
    merged = ["lora-merged"] if recipe.models.lora_rank else []
    tags = [task, wan.replace(" ", "").lower(), "comfyui", "salt", *merged]
    front = yaml.safe_dump({"library_name": "comfyui-salt", "pipeline_tag": task, "tags": tags})
    blocks = f"blocks of {spec.frames_per_block} latent frames, memory `{spec.policy}`"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in values.items())
    settings = yaml.safe_dump(json.loads(json.dumps(recipe.to_dict())), sort_keys=False, allow_unicode=True)
    first = f"; in the first block {_numbers(spec.first_steps)}" if spec.first_steps else ""
    weights = "averaged (EMA)" if recipe.optimisation.ema and done >= recipe.optimisation.ema_start else "latest"
    return f"""---
{front}---

# {recipe.name}

A {wan} student for few-step video, trained with ComfyUI-Salt by {STAGES[recipe.stage]}.

| | |
|---|---|
| rollout | {blocks if spec.frames_per_block else "the whole clip at once"} |
| steps (NFE) | {spec.schedule.nfe}: {_numbers(spec.steps)}{first}, shift {spec.shift:g} |
| guidance | none needed |
| trained | {done} updates of {recipe.optimisation.batch} clips, {recipe.rollout.frames} latent frames each |
| weights | {weights}, bfloat16 |
| started from | `{recipe.models.student}` |
| teacher | `{recipe.models.teacher if recipe.stage in ("distill", "cd") else "the clips of " + recipe.data.clips}` |
| recipe | `{recipe_hash(recipe)}`, below |

The licences of its initial checkpoint and of its teacher apply to it.

## Use

ComfyUI: put `{recipe.name}.safetensors` in `models/diffusion_models` and load it with *Load Salt Student*.
Without ComfyUI (`salt generate --help`):

```
{usage(recipe, config)}
```

## Last values of the run

These are losses, not scores of the videos, which `python -m train evaluate` computes.

| quantity | last |
|---|---|
{rows}

## Recipe

```yaml
{settings}```
"""


def usage(recipe: Recipe, config: Mapping[str, Any]) -> str:
    """The commands that make a video with the exported student, with the text encoder and VAE that it needs."""
    model = f"--model {recipe.name}.safetensors" + (" --image start.png" if recipe.data.images else "")
    if recipe.models.text == "words":
        return f'salt generate "a red circle moving right" {model} --parts {TINY_NAME}'
    if config["in_channels"] > config["out_channels"]:
        folder = "Wan2.1-I2V-14B-480P-Diffusers"
        download = download_command(folder)
        return f'{download}\nsalt generate "a prompt" {model} --parts {folder}'
    vae = "wan22-vae" if config["out_channels"] == WAN22_CHANNELS else "wan-vae"
    return f'salt pull wan-text-encoder wan-tokenizer {vae}\nsalt generate "a prompt" {model}'


def push(folder: Path, repository: str, revision_note: str) -> str:
    """Upload an export to the hub, with huggingface-hub's own token; returns the address.

    Raises UploadError naming the repository and the hub's answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=revision_note)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UploadError(f"{repository}: not uploaded ({reason}); the export is in {folder}") from error
    return str(url)
