"""`python -m train distill RECIPE`: from a recipe to an exported student, in one process or several.

A run resumes from its newest checkpoint. Several processes: `accelerate launch -m train distill ...`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml
from accelerate.utils import broadcast_object_list

from salt.checkpoints import load_student
from train.config.loader import load_recipe
from train.config.model_configs import check_backbones
from train.config.recipe import Recipe, RecipeError
from train.config.validation import check_recipe, check_settings, missing_files
from train.data.clip_dataset import generate_clips
from train.distributed.launch import (
    Mode,
    check_mode,
    is_main_process,
    process_count,
    process_device,
    process_state,
    resolve_mode,
)
from train.dry_run import dry_run_recipe
from train.export import export, last_values, push
from train.memory_estimate.report import available_memory, check_memory
from train.methods.base import Trainer
from train.methods.ode_regression import ODERegressionTrainer
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.teacher_forcing import TeacherForcingTrainer
from train.sample_grid import SampleGrid

TRAINERS: dict[str, type[SCDMDTrainer | ODERegressionTrainer | TeacherForcingTrainer]] = {
    "distill": SCDMDTrainer,
    "ode": ODERegressionTrainer,
    "tf": TeacherForcingTrainer,
}
# What a resumed run may not change, and what it may all the same: settings that trade memory for time.
FIXED_KEYS = ("stage", "models", "rollout", "run.seed", "optimisation.optimizer")
FREE_KEYS = ("models.offload", "models.checkpointing", "models.keep")


def save_recipe(recipe: Recipe) -> None:
    """Write all settings to `recipe.yaml` in the run's folder.

    Raises RecipeError where the folder holds a run that this recipe cannot resume.
    """
    path = Path(recipe.run.out) / "recipe.yaml"
    settings = yaml.safe_load(yaml.safe_dump(_plain(recipe.to_dict()), sort_keys=False))
    if path.exists():
        before, now = _fixed_settings(yaml.safe_load(path.read_text(encoding="utf-8"))), _fixed_settings(settings)
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            key = changed[0]
            raise RecipeError(
                key,
                f"found {now[key]}, expected {before.get(key)}: {recipe.run.out} holds a run with it. Resume with the "
                "same value, or choose another run.out",
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _fixed_settings(settings: dict[str, object]) -> dict[str, object]:
    """The settings that a resumed run may not change, by key."""
    fixed: dict[str, object] = {}
    for section, value in settings.items():
        keys = {f"{section}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {section: value}
        fixed |= {key: v for key, v in keys.items() if (section in FIXED_KEYS or key in FIXED_KEYS)}
    return {key: value for key, value in fixed.items() if key not in FREE_KEYS}


def _plain(value: object) -> object:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def distill(recipe: Recipe, mode: Mode, repository: str = "") -> Path:
    """Train to the recipe's last update and export; returns the student's file."""
    trainer = TRAINERS[recipe.stage](recipe, mode)
    if trainer.accelerator.is_main_process:
        save_recipe(recipe)
    samples = SampleGrid(trainer) if recipe.run.sample_every else None
    done = trainer.run(partial(_sample, trainer, samples) if samples else None)
    path = export(trainer, done)
    if repository and trainer.accelerator.is_main_process:
        print(f"uploaded to {push(path.parent, repository, f'{recipe.name}, {done} updates')}")
    return path


def _sample(trainer: Trainer, samples: SampleGrid, done: int) -> dict[str, float]:
    """Write samples after an update where they are due; returns the semigroup defects, for the log."""
    run, opt = trainer.recipe.run, trainer.recipe.optimisation
    if done % run.sample_every and done != opt.updates:
        return {}
    samples.write(trainer, done)
    return samples.defects(trainer)


def dry_run(recipe: Recipe, mode: Mode) -> list[str]:
    """Run the recipe with tiny random models; returns a line on its losses, and one for every missing real file.

    Two updates with all losses, samples, checkpoint, resume, export and card, in a temporary folder.
    """
    check_settings(recipe, process_count())
    check_backbones(recipe)
    shared = None
    if process_count() > 1:  # perhaps on several nodes, which share the run's folder and not /tmp
        shared = Path(recipe.run.out).absolute().parent
        shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="salt-dry-run-", dir=shared) as own_folder:
        state = process_state()
        folders = [own_folder]
        if process_count() > 1:
            broadcast_object_list(folders)
        folder = Path(folders[0])
        # Every process writes the same files, each of them atomically, so that none waits for another.
        small = dry_run_recipe(recipe, folder, process_count())
        if small.stage != "distill":
            generate_clips(small, process_device())
        distill(replace(small, optimisation=replace(small.optimisation, updates=1)), mode)
        path = distill(small, mode)
        values = last_values(Path(small.run.out) / "losses.csv")
        files = {p.relative_to(small.run.out).as_posix() for p in Path(small.run.out).rglob("*") if p.is_file()}
        load_student(path)
        state.wait_for_everyone()
    losses = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    expected = {"losses.csv", "losses.png", "recipe.yaml", f"export/{recipe.name}.safetensors", "export/README.md"}
    if missing := sorted(expected - files):
        raise RuntimeError(f"the dry run of {recipe.name} has not written {', '.join(missing)}")
    lines = [f"dry run of {recipe.name} ({recipe.stage}, {mode}): 2 updates, resumed between them; {losses}"]
    return lines + [f"  missing: {error}" for error in missing_files(recipe)]


def run(arguments: argparse.Namespace) -> None:
    """Distil a student (or train its initial student: stages ode and tf)."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.keep is not None:
        recipe = replace(recipe, run=replace(recipe.run, keep=arguments.keep))
    mode = resolve_mode(arguments.mode)
    check_mode(recipe, mode)
    if arguments.dry_run:
        lines = dry_run(recipe, mode)
    else:
        check_recipe(recipe, process_count())
        check_backbones(recipe)
        check_memory(recipe, process_count(), mode, available_memory(process_device()))
        lines = [f"student: {distill(recipe, mode, arguments.push)}"]
    if is_main_process():
        print("\n".join(lines))
    process_state().destroy_process_group()


def add_distill(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("distill", help=run.__doc__, description=__doc__)
    command.add_argument("recipe", type=Path, help="a YAML file, or the name of one in train/recipes")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="as optimisation.lr=1e-5")
    command.add_argument("--dry-run", action="store_true", help="two updates with tiny random models, on any machine")
    command.add_argument(
        "--mode", choices=("auto", "single", "ddp", "fsdp"), default="auto", help="how several processes are used"
    )
    command.add_argument("--keep", type=int, metavar="N", help="complete checkpoints to keep (run.keep)")
    command.add_argument("--push", default="", metavar="OWNER/NAME", help="upload the export to the hub")
    command.set_defaults(run=run)
